// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process's standard streams: each is a connection of its own from the guest, and a thread here that moves bytes
//! between it and ours.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Log, Stream};
use crate::print::unless_reader_left;

/// The most that is handed on at once, in bytes: a pipe's usual size.
const PIECE: usize = 64 << 10;

/// How long a guest may say nothing on a stream, and not end it either, after its container has ended.
const SILENCE: Duration = Duration::from_secs(10);

/// Where output goes: to a stream of ours, into a log, to both or nowhere.
#[derive(Default)]
pub struct Sink {
    ours: Option<File>,
    log: Option<(Log, Stream)>,
}

impl Sink {
    /// Goes to one of our streams, too.
    pub fn to(mut self, ours: impl AsFd) -> Result<Self> {
        self.ours = Some(own(ours)?);
        Ok(self)
    }

    /// Goes into a log, too.
    pub fn logged(mut self, log: Option<&Log>, stream: Stream) -> Self {
        self.log = log.map(|log| (log.clone(), stream));
        self
    }
}

impl Write for Sink {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Some((log, stream)) = &self.log {
            log.write(*stream, piece);
        }
        if let Some(ours) = &mut self.ours {
            ours.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One of the output streams of a process in the guest, on its way.
pub struct Output {
    name: &'static str,
    guest: UnixStream,
    /// Pieces handed on so far, twice, plus one while a piece is being handed on.
    steps: Arc<AtomicU64>,
    /// What they were when that was last looked at anew, and when.
    seen: (u64, Instant),
    outcome: Receiver<io::Result<()>>,
    /// Readable once there is an outcome.
    over: OwnedFd,
}

impl Output {
    /// Copies all that comes from `guest` to `sink` until the guest closes its end.
    pub fn start(stream: Stream, guest: UnixStream, mut sink: Sink) -> Result<Self> {
        let name = stream.name();
        let steps = Arc::new(AtomicU64::new(0));
        let (sender, outcome) = mpsc::channel();
        let (over, copying) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let (mut stream, counter) = (
            guest.try_clone().context("cannot duplicate a stream")?,
            Arc::clone(&steps),
        );
        let body = move || {
            let copied = copy(&mut stream, &mut sink, &counter);
            if copied.is_err() {
                // Nobody reads our end any more: the container shall see the same on its own.
                let _ = stream.shutdown(Shutdown::Both);
            }
            // Whoever waited may have given up.
            let _ = sender.send(copied);
            drop(copying);
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .with_context(|| format!("cannot start the thread for {name}"))?;
        Ok(Self {
            name,
            guest,
            steps,
            seen: (0, Instant::now()),
            outcome,
            over,
        })
    }

    /// The container has ended: from now on its guest is not waited for without end.
    pub fn expect_end(&mut self) {
        self.seen = (self.steps.load(Ordering::Relaxed), Instant::now());
    }

    /// How it went, once everything has been handed on, however slow the reader of our end is. A guest that keeps the
    /// stream open and silent after its container's end is given up.
    pub fn try_finish(&mut self) -> Option<Result<()>> {
        match self.outcome.try_recv() {
            Ok(copied) => {
                let what = format!("cannot hand on the container's {}", self.name);
                return Some(unless_reader_left(copied.context(what)));
            }
            Err(TryRecvError::Disconnected) => {
                return Some(Err(anyhow!("the thread for {} panicked", self.name)));
            }
            Err(TryRecvError::Empty) => {}
        }
        let now = self.steps.load(Ordering::Relaxed);
        // Our reader may take its time.
        if now != self.seen.0 || !now.is_multiple_of(2) {
            self.seen = (now, Instant::now());
        }
        if self.seen.1.elapsed() < SILENCE {
            return None;
        }
        let _ = self.guest.shutdown(Shutdown::Both);
        Some(Err(anyhow!(
            "the guest did not end the container's {} within {} s of its end",
            self.name,
            SILENCE.as_secs()
        )))
    }
}

impl AsFd for Output {
    /// What is readable once everything has been handed on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.over.as_fd()
    }
}

/// The outputs of a process that has ended, on their way.
pub struct Rest {
    outputs: Vec<Output>,
    outcome: Result<()>,
}

impl Rest {
    pub fn new(outputs: impl IntoIterator<Item = Output>) -> Self {
        let mut outputs: Vec<_> = outputs.into_iter().collect();
        outputs.iter_mut().for_each(Output::expect_end);
        Self {
            outputs,
            outcome: Ok(()),
        }
    }

    /// Forgets what has been handed on, or given up; says whether that is all.
    pub fn is_over(&mut self) -> bool {
        let outcome = &mut self.outcome;
        self.outputs.retain_mut(|output| match output.try_finish() {
            None => true,
            Some(finished) => {
                // The first failure is told; the others go on.
                if outcome.is_ok() {
                    *outcome = finished;
                }
                false
            }
        });
        self.outputs.is_empty()
    }

    /// What to wait for, and no longer than [`Self::LOOK`]: that is how a silent guest shows.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().map(AsFd::as_fd)
    }

    /// How long it may be waited before it is looked again.
    pub const LOOK: Duration = Duration::from_secs(1);

    /// How it went.
    pub fn into_outcome(self) -> Result<()> {
        self.outcome
    }

    /// Waits until all is over.
    pub fn finish(mut self) -> Result<()> {
        while !self.is_over() {
            let mut waiting: Vec<_> = self
                .descriptors()
                .map(|each| PollFd::from_borrowed_fd(each, PollFlags::IN))
                .collect();
            match poll(&mut waiting, Timespec::try_from(Self::LOOK).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for output"),
            }
        }
        self.outcome
    }
}

/// Copies our standard input to a process's, and its end too. Nobody waits for this: it may end without having read
/// all.
pub fn start_input(guest: UnixStream) -> Result<()> {
    let mut ours = own(io::stdin())?;
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            // A failure means that the container reads no more.
            let _ = copy(&mut ours, &mut &guest, &AtomicU64::new(0));
            let _ = guest.shutdown(Shutdown::Write);
        })
        .context("cannot start the thread for stdin")?;
    Ok(())
}

/// Hands on each piece as it comes.
///
/// Not `io::copy`: that splices, and a splice from a socket holds the pipe it fills for as long as
/// it waits for more, so that nobody can read what is in it.
fn copy(from: &mut impl Read, to: &mut impl Write, steps: &AtomicU64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                steps.fetch_add(1, Ordering::Relaxed);
                to.write_all(&piece[..length])?;
                steps.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An unbuffered handle on one of our streams.
fn own(stream: impl AsFd) -> Result<File> {
    Ok(File::from(
        stream
            .as_fd()
            .try_clone_to_owned()
            .context("cannot duplicate a standard stream")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_whole_once_the_guest_has_closed_it() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let output =
            Output::start(Stream::Stdout, host, Sink::default().to(&write).unwrap()).unwrap();
        drop(write);

        guest.write_all(b"all of it").unwrap();
        drop(guest);

        Rest::new([output]).finish().unwrap();
        let mut found = String::new();
        read.read_to_string(&mut found).unwrap();
        assert_eq!(found, "all of it");
    }

    #[test]
    fn reader_that_went_away_is_no_failure() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let output =
            Output::start(Stream::Stdout, host, Sink::default().to(&write).unwrap()).unwrap();

        guest.write_all(b"for nobody").unwrap();

        Rest::new([output]).finish().unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0, "the guest is told");
    }

    #[test]
    fn guest_that_never_ends_its_output_is_given_up() {
        let (_guest, host) = UnixStream::pair().unwrap();
        let (_read, write) = io::pipe().unwrap();
        let output =
            Output::start(Stream::Stdout, host, Sink::default().to(&write).unwrap()).unwrap();

        let error = Rest::new([output]).finish().unwrap_err();

        assert!(
            error
                .to_string()
                .contains("did not end the container's stdout"),
            "{error}"
        );
    }

    #[test]
    fn one_that_fails_does_not_cut_the_other_off() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let failing =
            Output::start(Stream::Stdout, host, Sink::default().to(&full).unwrap()).unwrap();
        let (mut other_guest, host) = UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let other =
            Output::start(Stream::Stderr, host, Sink::default().to(&write).unwrap()).unwrap();
        drop(write);
        guest.write_all(b"no room").unwrap();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            other_guest.write_all(b"last words").unwrap();
        });

        let error = Rest::new([failing, other]).finish().unwrap_err();

        let mut found = String::new();
        read.read_to_string(&mut found).unwrap();
        assert_eq!(found, "last words");
        assert_eq!(error.to_string(), "cannot hand on the container's stdout");
    }
}
