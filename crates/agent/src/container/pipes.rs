// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process' standard streams as pipes on its side, streams to the host on ours, and a thread that pumps between the two.
//!
//! The process does not get the host's streams themselves: programs open `/dev/stdout` anew, which works for a pipe
//! and fails for a socket. It is copied, not spliced: a splice makes a packet of each page, and a packet costs both kernels
//! and the VMM several times what its bytes do.
//!
//! Nothing is lost on the way: [`Pipes::drain`] returns once all output has been handed over, and only then is
//! the end of the process reported. An end of file travels both ways: the last writer that closes a pipe shuts the
//! stream to the host down, and a host that shuts its end down closes the process' standard input.
//!
//! The streams end with their process, as a terminal does: what it leaves in the background finds its output closed, and
//! holds neither the host nor threads here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::PipeFlags;

use super::stdio::{HostStreams, ProcessEnds, null};

/// How much of the input is moved at a time: what a pipe holds.
const PIPE: usize = 64 << 10;

/// How much of an output is moved at a time, which becomes one packet: with what the kernel adds, the largest block of
/// memory that it finds however scattered its memory is.
const PACKET: usize = 28 << 10;

/// What a pump's stack has to hold: its buffer, and not much more.
const STACK: usize = 128 << 10;

/// How often an output that does not end is looked at, after the process' end.
const CHECK: Duration = Duration::from_millis(100);

/// The pumps of one process.
#[derive(Debug)]
pub struct Pipes {
    outputs: Arc<Outputs>,
    pumped: Vec<Output>,
    /// Tells the input's pump to end once what has arrived is delivered.
    close_stdin: Option<OwnedFd>,
    /// Tells all pumps that these are the process' last words.
    end: Arc<OwnedFd>,
}

/// An output that is pumped, or was.
#[derive(Debug)]
struct Output {
    /// The reading end of its pipe, to see whether something is left in it. It is the pump's: when that ends early, because
    /// the host is gone, the writers are to notice.
    pipe: Weak<OwnedFd>,
    /// How many bytes have been moved.
    moved: Arc<AtomicU64>,
}

/// How many outputs are still pumped.
#[derive(Debug, Default)]
struct Outputs {
    running: Mutex<usize>,
    one_ended: Condvar,
}

impl Pipes {
    /// Makes pipes for a process and starts the pumps between them and `host`.
    ///
    /// # Errors
    ///
    /// This process is out of descriptors or threads.
    pub fn start(host: HostStreams) -> io::Result<(Self, ProcessEnds)> {
        let mut streams = Self {
            outputs: Arc::default(),
            pumped: Vec::new(),
            close_stdin: None,
            end: Arc::new(event()?),
        };
        let stdin = match host.stdin {
            None => null()?,
            Some(stream) => streams.start_input(stream)?,
        };
        let stdout = match host.stdout {
            None => null()?,
            Some(stream) => streams.start_output("stdout", stream)?,
        };
        let stderr = match host.stderr {
            None => null()?,
            Some(stream) => streams.start_output("stderr", stream)?,
        };
        let ends = ProcessEnds {
            stdin,
            stdout,
            stderr,
        };
        Ok((streams, ends))
    }

    /// Ends the standard input once what has arrived from the host is delivered.
    pub fn close_stdin(&self) {
        if let Some(event) = &self.close_stdin {
            tell(event);
        }
    }

    /// Waits until all that the process has written is with the host, and ends the streams. To be called when the process
    /// has ended.
    ///
    /// An output that another process holds open, one that was left in the background for example, does not end by itself.
    /// It is given up when nothing is left in its pipe, or as much has been moved as could be in it.
    pub fn drain(&self) {
        let bounds: Vec<_> = self.pumped.iter().map(Output::bound).collect();
        let mut idle = 0;
        let mut running = lock(&self.outputs.running);
        while *running > 0 && idle < 2 {
            let (guard, timeout) = self
                .outputs
                .one_ended
                .wait_timeout(running, CHECK)
                .unwrap_or_else(PoisonError::into_inner);
            running = guard;
            // A host that takes its time is waited for.
            let done = self
                .pumped
                .iter()
                .zip(&bounds)
                .all(|(output, bound)| output.is_empty() || output.moved() >= *bound);
            idle = if timeout.timed_out() && done {
                idle + 1
            } else {
                0
            };
        }
        tell(&self.end);
        // Each has no more to do than to hand over what it holds.
        let ended = self
            .outputs
            .one_ended
            .wait_while(running, |running| *running > 0);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    fn start_input(&mut self, stream: OwnedFd) -> io::Result<OwnedFd> {
        let (process, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
        let close = event()?;
        let told = rustix::io::fcntl_dupfd_cloexec(&close, 0)?;
        let end = Arc::clone(&self.end);
        spawn("stdin", move || pump_input(&stream, &ours, [&told, &end]))?;
        self.close_stdin = Some(close);
        Ok(process)
    }

    fn start_output(&mut self, name: &str, stream: OwnedFd) -> io::Result<OwnedFd> {
        let (ours, process) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let ours = Arc::new(ours);
        let moved = Arc::new(AtomicU64::new(0));
        self.pumped.push(Output {
            pipe: Arc::downgrade(&ours),
            moved: Arc::clone(&moved),
        });
        let (outputs, end) = (Arc::clone(&self.outputs), Arc::clone(&self.end));
        *lock(&outputs.running) += 1;
        let started = spawn(name, move || {
            pump_output(&ours, &stream, &end, &moved);
            drop(ours);
            *lock(&outputs.running) -= 1;
            outputs.one_ended.notify_all();
        });
        if started.is_err() {
            *lock(&self.outputs.running) -= 1;
        }
        started.map(|()| process)
    }
}

impl Drop for Pipes {
    /// Whoever is forgotten, however that came, has no streams any more.
    fn drop(&mut self) {
        tell(&self.end);
    }
}

fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
}

fn tell(event: &OwnedFd) {
    // It can fail only if it was told so 2^64 times before.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

impl Output {
    /// How much will have been moved, at the latest, when all that is in the pipe now has been.
    fn bound(&self) -> u64 {
        let room = self.pipe.upgrade().map_or(0, |pipe| {
            rustix::pipe::fcntl_getpipe_size(&pipe).unwrap_or(PIPE)
        });
        self.moved().saturating_add(room as u64)
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.pipe
            .upgrade()
            .is_none_or(|pipe| rustix::io::ioctl_fionread(&pipe).is_ok_and(|pending| pending == 0))
    }
}

pub(super) fn spawn(name: &str, pump: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(pump)
        .map(drop)
}

/// Moves all that is written to `pipe` to `stream`, until the last writer closes it or `end` says that what is in it now is
/// the last, and then tells the host that this was all. Ends early if the host is gone.
fn pump_output(pipe: &OwnedFd, stream: &OwnedFd, end: &OwnedFd, moved: &AtomicU64) {
    if move_all(pipe, stream, end, moved).is_ok() {
        // It fails if the host has gone in the meantime, which is its business.
        let _ = rustix::net::shutdown(stream, Shutdown::Write);
    }
}

/// Moves what is in `pipe` until there is no more, or after `end` no more than a pipe holds.
fn move_all(
    pipe: &OwnedFd,
    stream: &OwnedFd,
    end: &OwnedFd,
    moved: &AtomicU64,
) -> Result<(), Errno> {
    let mut buffer = [0; PACKET];
    let mut left = None;
    while left != Some(0) {
        let mut ready = [
            PollFd::new(pipe, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        let ready = match left {
            None => &mut ready[..],
            Some(_) => &mut ready[..1],
        };
        match rustix::event::poll(ready, left.map(|_| &NO_TIME)) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            result => drop(result?),
        }
        if ready[0].revents().is_empty() {
            left = Some(rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(PIPE));
            continue;
        }
        let room = left.unwrap_or(PACKET).min(PACKET);
        match rustix::io::read(pipe, &mut buffer[..room]) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                write_all(stream, &buffer[..length])?;
                count(moved, length);
                left = left.map(|left| left.saturating_sub(length));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn count(moved: &AtomicU64, length: usize) {
    moved.fetch_add(length as u64, Ordering::Relaxed);
}

fn write_all(to: impl AsFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(&to, data) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves all that comes from `stream` to `pipe`, until the host has no more, nobody reads any more, or the first of `events`
/// says that what has arrived by now is the last, or the second that there is nobody to read it. Dropping the pipe then
/// tells the container.
fn pump_input(stream: &OwnedFd, pipe: &OwnedFd, events: [&OwnedFd; 2]) {
    // Either end may go at any time; the other learns of it as this one's descriptors are closed.
    let _ = copy_input(stream, pipe, events);
    let _ = rustix::net::shutdown(stream, Shutdown::Both);
}

fn copy_input(stream: &OwnedFd, pipe: &OwnedFd, [close, end]: [&OwnedFd; 2]) -> Result<(), Errno> {
    let mut buffer = [0; PIPE];
    // What has come of the host and is not in the pipe yet.
    let mut held = 0..0;
    let mut closing = false;
    loop {
        let when = |condition, flags| if condition { flags } else { PollFlags::empty() };
        let mut ready = [
            // Reports in any case that nobody reads the pipe.
            PollFd::new(pipe, when(!held.is_empty(), PollFlags::OUT)),
            PollFd::new(close, when(!closing, PollFlags::IN)),
            PollFd::new(end, PollFlags::IN),
            // Reports in any case that the host is gone, which can wait until what it sent is in the pipe.
            PollFd::new(stream, PollFlags::IN),
        ];
        let polled = if held.is_empty() { 4 } else { 3 };
        let timeout = (closing && held.is_empty()).then_some(&NO_TIME);
        match rustix::event::poll(&mut ready[..polled], timeout) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            result => drop(result?),
        }
        let [to_container, close_event, end_event, from_host] = ready.map(|it| it.revents());
        if !end_event.is_empty() || to_container.intersects(PollFlags::ERR) {
            return Ok(());
        }
        if to_container.contains(PollFlags::OUT) {
            match rustix::io::write(pipe, &buffer[held.clone()]) {
                Ok(written) => held.start += written,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        } else if !from_host.is_empty() {
            match rustix::io::read(stream, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => held = 0..length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        } else if !close_event.is_empty() {
            closing = true;
        }
    }
}

const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Locks, also what a thread that panicked left locked: a count is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    fn stream_pair() -> (UnixStream, OwnedFd) {
        let (host, agent) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        (host, agent.into())
    }

    fn read_all(mut from: impl Read) -> Vec<u8> {
        let mut data = Vec::new();
        from.read_to_end(&mut data).unwrap();
        data
    }

    #[test]
    fn output_arrives_whole_and_ends() {
        let (host, agent) = stream_pair();
        let (streams, ends) = Pipes::start(HostStreams {
            stdout: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();
        let data: Vec<u8> = (0..1_000_000_u32)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let reader = thread::spawn(move || read_all(host));

        File::from(ends.stdout).write_all(&data).unwrap();
        streams.drain();

        assert!(reader.join().unwrap() == data);
    }

    #[test]
    fn writers_notice_that_the_host_is_gone() {
        let (host, agent) = stream_pair();
        let (_streams, ends) = Pipes::start(HostStreams {
            stdout: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();
        drop(host);

        let mut stdout = File::from(ends.stdout);
        let deadline = Instant::now() + Duration::from_secs(10);
        let error = loop {
            assert!(Instant::now() < deadline, "still written to nowhere");
            if let Err(error) = stdout.write_all(b"x") {
                break error;
            }
        };

        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn drain_gives_up_what_others_hold_open() {
        let (host, agent) = stream_pair();
        let (streams, ends) = Pipes::start(HostStreams {
            stderr: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();
        let mut held = File::from(ends.stderr);
        held.write_all(b"last words").unwrap();

        streams.drain();

        let mut words = [0; 10];
        (&host).read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words");
    }

    #[test]
    fn drain_gives_up_what_others_go_on_writing_to() {
        let (host, agent) = stream_pair();
        let (streams, ends) = Pipes::start(HostStreams {
            stdout: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();
        thread::spawn(
            move || {
                while (&host).read(&mut [0; PIPE]).is_ok_and(|length| length > 0) {}
            },
        );
        let mut held = File::from(ends.stdout);
        thread::spawn(move || while held.write_all(&[b'x'; PIPE]).is_ok() {});
        let (done, finished) = std::sync::mpsc::channel();

        thread::spawn(move || {
            streams.drain();
            done.send(()).unwrap();
        });

        finished.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn output_that_is_given_up_ends_at_both_ends() {
        let (host, agent) = stream_pair();
        let (streams, ends) = Pipes::start(HostStreams {
            stdout: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();
        let mut held = File::from(ends.stdout);
        held.write_all(b"last words").unwrap();

        streams.drain();

        assert_eq!(read_all(host), b"last words");
        let error = held.write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn forgotten_process_leaves_no_streams_though_others_hold_its_ends() {
        let [(mut input, stdin), (output, stdout)] = [stream_pair(), stream_pair()];
        let (streams, _held) = Pipes::start(HostStreams {
            stdin: Some(stdin),
            stdout: Some(stdout),
            ..HostStreams::default()
        })
        .unwrap();
        // More than anybody reads.
        input.write_all(&[b'x'; 2 * PIPE]).unwrap();

        drop(streams);

        // What it has not read is reset.
        let end = input.read(&mut [0]).or_else(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => Ok(0),
            _ => Err(error),
        });
        assert_eq!(end.unwrap(), 0);
        assert!(read_all(output).is_empty());
    }

    #[test]
    fn input_ends_when_the_host_shuts_down() {
        let (mut host, agent) = stream_pair();
        let (_streams, ends) = Pipes::start(HostStreams {
            stdin: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();

        host.write_all(b"hello").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();

        assert_eq!(read_all(File::from(ends.stdin)), b"hello");
    }

    #[test]
    fn closed_input_delivers_what_has_arrived() {
        let (mut host, agent) = stream_pair();
        host.write_all(b"hello").unwrap();
        let (streams, ends) = Pipes::start(HostStreams {
            stdin: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();

        streams.close_stdin();

        assert_eq!(read_all(File::from(ends.stdin)), b"hello");
    }

    #[test]
    fn host_learns_that_nobody_reads() {
        let (host, agent) = stream_pair();
        let (_streams, ends) = Pipes::start(HostStreams {
            stdin: Some(agent),
            ..HostStreams::default()
        })
        .unwrap();

        drop(ends.stdin);

        assert!(read_all(host).is_empty());
    }

    #[test]
    fn absent_streams_are_null() {
        let (streams, ends) = Pipes::start(HostStreams::default()).unwrap();

        File::from(ends.stdout).write_all(b"into the void").unwrap();
        streams.drain();

        assert!(read_all(File::from(ends.stdin)).is_empty());
    }
}
