// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for a guest: until a deadline, until it is gone, or until the user wants no more.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::signals::Forwarding;

/// A signal ended a wait.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by signal {0} before the container was started")]
pub struct Interrupted(pub i32);

/// The time for a wait is over.
#[derive(Debug, thiserror::Error)]
#[error("the guest did not answer within {seconds} s{remedy}")]
pub struct TimedOut {
    seconds: u64,
    remedy: &'static str,
}

/// What all waits for one guest have in common.
pub struct Patience {
    /// The time for the present wait, and its end; nothing where it may take any time.
    limit: Option<(Duration, Instant)>,
    /// What gives the present wait more time.
    remedy: &'static str,
    signals: Forwarding,
}

impl Patience {
    /// The guest has `timeout` from now on; if that is nothing, as long as it takes: somebody may have stopped it.
    pub fn new(timeout: Option<Duration>, signals: Forwarding) -> Self {
        Self {
            limit: timeout.map(until),
            remedy: " (--boot-timeout gives it more)",
            signals,
        }
    }

    /// The guest has done what it was waited for; it has `timeout` for what is next, if there is a limit at all.
    pub fn renew(&mut self, timeout: Duration) {
        self.limit = self.limit.map(|_| until(timeout));
        self.remedy = "";
    }

    /// The signals that have not ended a wait.
    pub fn into_signals(self) -> Forwarding {
        self.signals
    }

    /// Waits until `descriptor` is readable. Ends early where `gone` is: that is how the guest's end shows.
    pub fn wait(&mut self, descriptor: BorrowedFd<'_>, gone: Option<BorrowedFd<'_>>) -> Result<()> {
        self.wait_for(descriptor, PollFlags::IN, gone)
    }

    /// Waits as [`Self::wait`] does, for `events` on `descriptor`.
    pub fn wait_for(
        &mut self,
        descriptor: BorrowedFd<'_>,
        events: PollFlags,
        gone: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        loop {
            if let Some(signal) = self
                .signals
                .pending()
                .filter(|signal| *signal != libc::SIGWINCH)
            {
                return Err(Interrupted(signal).into());
            }
            let left = self
                .limit
                .map(|(_, end)| end.saturating_duration_since(Instant::now()));
            if let (Some((timeout, _)), Some(Duration::ZERO)) = (self.limit, left) {
                return Err(TimedOut {
                    seconds: timeout.as_secs(),
                    remedy: self.remedy,
                }
                .into());
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let signals = self.signals.as_fd();
            let mut descriptors = [
                (descriptor, events),
                (signals, PollFlags::IN),
                (gone.unwrap_or(signals), PollFlags::IN),
            ]
            .map(|(each, events)| PollFd::from_borrowed_fd(each, events));
            match poll(&mut descriptors, left.as_ref()) {
                Ok(0) | Err(Errno::INTR) => continue,
                outcome => outcome.context("cannot wait for the guest")?,
            };
            let [answer, _, end] = descriptors;
            if !answer.revents().is_empty() {
                return Ok(());
            }
            if gone.is_some() && !end.revents().is_empty() {
                bail!("the guest ended before its agent answered");
            }
        }
    }

    /// Reads one line of at most `limit` bytes, and nothing of what follows it.
    pub fn read_line(
        &mut self,
        mut stream: &UnixStream,
        gone: BorrowedFd<'_>,
        limit: usize,
    ) -> Result<Vec<u8>> {
        stream
            .set_nonblocking(true)
            .context("cannot set up a socket")?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(0) => bail!("the guest hung up after '{}'", line.escape_ascii()),
                Ok(_) if line.len() == limit => bail!("the guest's line has no end"),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(stream.as_fd(), Some(gone))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the guest's line cannot be read"),
            }
        }
        stream
            .set_nonblocking(false)
            .context("cannot set up a socket")?;
        Ok(line)
    }
}

fn until(timeout: Duration) -> (Duration, Instant) {
    (timeout, Instant::now() + timeout)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    fn patience(timeout: Duration) -> Patience {
        Patience::new(Some(timeout), Forwarding::catch().unwrap())
    }

    #[test]
    fn guest_that_a_debugger_stops_has_any_time() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            guest.write_all(b"x").unwrap();
        });
        let mut patience = Patience::new(None, Forwarding::catch().unwrap());
        patience.renew(Duration::from_millis(1));

        patience.wait(host.as_fd(), None).unwrap();

        late.join().unwrap();
    }

    #[test]
    fn option_of_the_start_is_named_for_the_start_alone() {
        let (_guest, host) = UnixStream::pair().unwrap();
        let mut patience = patience(Duration::from_secs(60));
        patience.renew(Duration::ZERO);

        let error = patience.wait(host.as_fd(), None).unwrap_err();

        assert_eq!(error.to_string(), "the guest did not answer within 0 s");
    }

    #[test]
    fn line_is_read_and_nothing_after_it() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (_alive, gone) = UnixStream::pair().unwrap();
        guest.write_all(b"OK 5\nrest").unwrap();

        let line = patience(Duration::from_secs(5))
            .read_line(&host, gone.as_fd(), 32)
            .unwrap();

        assert_eq!(line, b"OK 5\n");
        let mut rest = [0; 4];
        (&host).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[test]
    fn guest_that_dribbles_is_given_up_at_the_deadline() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (_alive, gone) = UnixStream::pair().unwrap();
        let dribbler = thread::spawn(move || {
            while guest.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });

        let error = patience(Duration::from_secs(1))
            .read_line(&host, gone.as_fd(), 4096)
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            "the guest did not answer within 1 s (--boot-timeout gives it more)"
        );
        drop(host);
        dribbler.join().unwrap();
    }

    #[test]
    fn endless_line_is_refused() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (_alive, gone) = UnixStream::pair().unwrap();
        guest.write_all(&[b'x'; 100]).unwrap();

        let error = patience(Duration::from_secs(5))
            .read_line(&host, gone.as_fd(), 32)
            .unwrap_err();

        assert_eq!(error.to_string(), "the guest's line has no end");
    }

    #[test]
    fn guest_that_is_gone_is_not_waited_for() {
        let (_guest, host) = UnixStream::pair().unwrap();
        let (alive, gone) = UnixStream::pair().unwrap();
        drop(alive);

        let error = patience(Duration::from_secs(60))
            .wait(host.as_fd(), Some(gone.as_fd()))
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            "the guest ended before its agent answered"
        );
    }
}
