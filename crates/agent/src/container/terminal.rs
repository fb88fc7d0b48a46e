// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process' terminal on our side: one thread that moves both directions between it and the host.
//!
//! A terminal does not end as a pipe does: while nobody has it open it is merely quiet, and one that a process in
//! the background keeps open outlives the process that it was made for. So we keep it open as well, and it ends with that
//! process: what is still in it goes to the host, and whoever has it open finds it hung up.
//!
//! Input that ends leaves it as it is, as with other container engines: what programs read as the end of a terminal's
//! input is a character, which it is for the host to send.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::pipes::spawn;
use super::stdio::HostStreams;

/// How much is moved at a time: as much as a terminal takes at once.
const BUFFER: usize = 4 << 10;

/// More than can be in a terminal that is no longer written to: 8 KiB in its buffers, and 4 KiB that can be read.
const LEFT_MAX: usize = 64 << 10;

/// The host's side of a terminal, while its process lives.
#[derive(Debug)]
pub struct Terminal {
    /// The pump's: without it, whoever has the terminal open is to find it hung up.
    host: Weak<OwnedFd>,
    /// Tells the pump that what has arrived by now is the last input.
    close_stdin: OwnedFd,
    ended: Arc<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    ended: Mutex<bool>,
    told: Condvar,
}

impl Terminal {
    /// Moves what goes between the terminal of `host` and `streams` until `process` has ended.
    ///
    /// # Errors
    ///
    /// This process is out of descriptors or threads.
    pub fn start(host: OwnedFd, process: BorrowedFd<'_>, streams: HostStreams) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let kept_open = rustix::pty::ioctl_tiocgptpeer(&host, flags)?;
        let status = rustix::fs::fcntl_getfl(&host)?;
        rustix::fs::fcntl_setfl(&host, status | OFlags::NONBLOCK)?;
        let host = Arc::new(host);
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let terminal = Self {
            host: Arc::downgrade(&host),
            close_stdin: rustix::io::fcntl_dupfd_cloexec(&event, 0)?,
            ended: Arc::default(),
        };
        let ended = Arc::clone(&terminal.ended);
        let process = rustix::io::fcntl_dupfd_cloexec(process, 0)?;
        spawn("terminal", move || {
            let mut pump = Pump {
                host,
                process,
                event,
                stdin: streams.stdin,
                stdout: streams.stdout,
                input: Lane::default(),
                output: Lane::default(),
                last_input: false,
                left: None,
            };
            // The host may be gone at any time; the terminal's processes learn of it as it is hung up.
            let result = pump.run();
            pump.finish(result.is_ok());
            drop((pump, kept_open));
            *lock(&ended.ended) = true;
            ended.told.notify_all();
        })?;
        Ok(terminal)
    }

    /// Ends the input once what has arrived from the host is delivered.
    pub fn close_stdin(&self) {
        // It can fail only if it was told so 2^64 times before.
        let _ = rustix::io::write(&self.close_stdin, &1_u64.to_ne_bytes());
    }

    /// Sets its size, and tells its processes; one that has ended has none to set.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let Some(host) = self.host.upgrade() else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&host, size)?)
    }

    /// Waits until all output has been handed to the host. To be called when the process has ended.
    pub fn drain(&self) {
        let ended = self
            .ended
            .told
            .wait_while(lock(&self.ended.ended), |ended| !*ended);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

struct Pump {
    host: Arc<OwnedFd>,
    /// Readable once the process has ended.
    process: OwnedFd,
    event: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    input: Lane,
    output: Lane,
    /// No input is waited for; what is there is still taken.
    last_input: bool,
    /// How much more may come of the terminal, once the process has ended.
    left: Option<usize>,
}

/// What is on its way in one direction.
struct Lane {
    buffer: Box<[u8; BUFFER]>,
    start: usize,
    end: usize,
}

/// What can be done without waiting.
struct Readiness {
    process: bool,
    event: bool,
    host: PollFlags,
    stdin: bool,
    stdout: bool,
}

impl Pump {
    /// Moves until the process has ended and its output is with the host.
    fn run(&mut self) -> Result<(), Errno> {
        loop {
            // What was written before the end was noticed may have come after the terminal was looked at.
            let had_ended = self.left.is_some();
            let ready = self.wait()?;
            if ready.event {
                self.last_input = true;
            } else if self.last_input && !ready.stdin && self.input.is_empty() {
                self.end_input();
            }
            if ready.process && self.left.is_none() {
                self.left = Some(LEFT_MAX);
                self.input.clear();
                self.end_input();
            }
            if ready.stdin {
                self.read_stdin();
            }
            if ready.host.contains(PollFlags::OUT) {
                self.write_terminal();
            }
            // While there is output that the host has not taken, the terminal is not asked for more.
            let asked = self.output.is_empty();
            let readable = ready.host.contains(PollFlags::IN);
            if asked && readable {
                self.read_terminal()?;
            }
            if ready.stdout || self.stdout.is_none() {
                self.write_stdout()?;
            }
            let exhausted = (asked && !readable) || self.left == Some(0);
            if had_ended && self.output.is_empty() && exhausted {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do; once the process has ended, only for the host.
    fn wait(&self) -> Result<Readiness, Errno> {
        let when = |condition, flags| if condition { flags } else { PollFlags::empty() };
        let (input, output) = (self.input.is_empty(), self.output.is_empty());
        let stdin = self.stdin.as_ref().filter(|_| input && self.left.is_none());
        let stdout = self.stdout.as_ref().filter(|_| !output);
        let mut polled = vec![
            PollFd::new(
                &*self.host,
                when(output, PollFlags::IN) | when(!input, PollFlags::OUT),
            ),
            PollFd::new(&self.event, when(!self.last_input, PollFlags::IN)),
        ];
        let watched = |polled: &mut Vec<_>, descriptor, flags| {
            polled.push(PollFd::from_borrowed_fd(descriptor, flags));
            polled.len() - 1
        };
        let process = self
            .left
            .is_none()
            .then(|| watched(&mut polled, self.process.as_fd(), PollFlags::IN));
        let stdin = stdin.map(|stdin| watched(&mut polled, stdin.as_fd(), PollFlags::IN));
        let stdout = stdout.map(|stdout| watched(&mut polled, stdout.as_fd(), PollFlags::OUT));

        // What was there when the process ended is there now; the same goes for input that has been declared the last.
        let at_once =
            (self.left.is_some() && stdout.is_none()) || (self.last_input && stdin.is_some());
        match rustix::event::poll(&mut polled, at_once.then_some(&NO_TIME)) {
            Err(Errno::INTR) => return self.wait(),
            result => drop(result?),
        }
        let events = |index: usize| {
            polled
                .get(index)
                .map_or(PollFlags::empty(), PollFd::revents)
        };
        let ready = |index: Option<usize>| index.is_some_and(|index| !events(index).is_empty());
        Ok(Readiness {
            process: ready(process),
            event: !events(1).is_empty(),
            host: events(0),
            stdin: ready(stdin),
            stdout: ready(stdout),
        })
    }

    fn read_stdin(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        let buffer = &mut self.input.buffer[..];
        match rustix::net::recv(stdin, buffer, RecvFlags::DONTWAIT) {
            Ok((length @ 1.., _)) => self.input.fill(length),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The end, or a host that is gone.
            _ => self.end_input(),
        }
    }

    fn write_terminal(&mut self) {
        match rustix::io::write(&*self.host, self.input.content()) {
            Ok(written) => self.input.take(written),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody is there to read it.
            Err(_) => self.input.clear(),
        }
    }

    fn read_terminal(&mut self) -> Result<(), Errno> {
        match rustix::io::read(&*self.host, &mut self.output.buffer[..]) {
            Ok(length) => {
                self.output.fill(length);
                self.left = self.left.map(|left| left.saturating_sub(length.max(1)));
                Ok(())
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn write_stdout(&mut self) -> Result<(), Errno> {
        let Some(stdout) = &self.stdout else {
            self.output.clear();
            return Ok(());
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(stdout, self.output.content(), flags) {
            Ok(written) => self.output.take(written),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes no more input, and tells the host.
    fn end_input(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            // It fails if the host has gone, which is its business.
            let _ = rustix::net::shutdown(stdin, Shutdown::Both);
        }
    }

    /// Tells the host that this was all, if it was.
    fn finish(&mut self, complete: bool) {
        self.end_input();
        if let Some(stdout) = self.stdout.take()
            && complete
        {
            // It fails if the host has gone, which is its business.
            let _ = rustix::net::shutdown(stdout, Shutdown::Write);
        }
    }
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn content(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Holds the first `length` bytes of its buffer from now on.
    fn fill(&mut self, length: usize) {
        (self.start, self.end) = (0, length.min(BUFFER));
    }

    fn take(&mut self, length: usize) {
        self.start = self.start.saturating_add(length).min(self.end);
    }

    fn clear(&mut self) {
        self.start = self.end;
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            buffer: Box::new([0; BUFFER]),
            start: 0,
            end: 0,
        }
    }
}

const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Locks, also what a thread that panicked left locked: a truth is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
