// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes beside this one that put something right when it has ended, however it ends.
//!
//! Such a process shares nothing with this one that could keep a caller waiting: no standard stream, no terminal, no
//! process group. Both hear of each other's end by a pair of sockets between them.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::descriptors::{close_all_but, ignore_signals};

/// The most bytes of what such a process says.
const LIMIT: usize = 64 << 10;

/// This process's end.
pub struct Lifeline {
    process: Pid,
    stream: UnixStream,
}

impl Lifeline {
    /// Forks a process that does `work` with its end, in a session of its own, without other descriptors than `kept`.
    ///
    /// To be called while this process has one thread.
    pub fn fork(kept: &[BorrowedFd<'_>], work: impl FnOnce(UnixStream)) -> Result<Self> {
        let (ours, its) = UnixStream::pair().context("cannot make a socket pair")?;
        // SAFETY: the process has one thread (the caller's promise), so the child may do whatever the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()).context("cannot fork a process"),
            0 => {
                let _ = rustix::process::setsid();
                let _ = rustix::process::chdir("/");
                let mut all = kept.to_vec();
                all.push(its.as_fd());
                close_all_but(&all);
                ignore_signals();
                work(its);
                // SAFETY: ends this process at once; what the parent registered for its own exit must not run here.
                unsafe { libc::_exit(0) }
            }
            process => Ok(Self {
                process: Pid::from_raw(process).context("fork gave no process id")?,
                stream: ours,
            }),
        }
    }

    /// What the process has to say until it hangs up or ends, or until there is no more `patience`.
    pub fn listen(&self, patience: Option<Duration>) -> String {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut said = Vec::new();
        let mut piece = [0; 1024];
        while said.len() < LIMIT {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // No time at all would be for ever.
            if left.is_some_and(|left| left.is_zero())
                || self.stream.set_read_timeout(left).is_err()
            {
                break;
            }
            match (&self.stream).read(&mut piece) {
                Ok(length @ 1..) => said.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whatever came before it ended or failed was said.
                _ => break,
            }
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Tells it that this process needs it no longer, which it would hear at its end, too.
    pub fn hang_up(&self) {
        // It fails only if the other end is gone.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Waits for its end.
    pub fn wait(&self) {
        // It is our child, and nobody else waits for it.
        let _ = waitpid(Some(self.process), WaitOptions::empty());
    }
}

/// Waits until the process at the other end hangs up, or ends.
pub fn wait_for_end(mut lifeline: &UnixStream) {
    let _ = lifeline.read(&mut [0]);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::alone;

    #[test]
    fn what_is_said_is_heard() {
        alone(what_is_said_is_heard, || {
            let lifeline = Lifeline::fork(&[], |mut stream| {
                let _ = stream.write_all(b"at once");
                wait_for_end(&stream);
                let _ = stream.write_all(b"at the end");
            })
            .unwrap();

            let at_once = lifeline.listen(Some(Duration::from_secs(1)));
            lifeline.hang_up();
            let at_the_end = lifeline.listen(None);
            lifeline.wait();

            assert_eq!(
                (at_once.as_str(), at_the_end.as_str()),
                ("at once", "at the end")
            );
        });
    }

    #[test]
    fn process_that_talks_on_and_on_is_listened_to_for_so_long_alone() {
        alone(
            process_that_talks_on_and_on_is_listened_to_for_so_long_alone,
            || {
                let lifeline = Lifeline::fork(&[], |mut stream| {
                    while stream.write_all(b"and ").is_ok() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                })
                .unwrap();
                let started = Instant::now();

                let said = lifeline.listen(Some(Duration::from_secs(1)));

                assert!(started.elapsed() < Duration::from_secs(20), "{said}");
                assert!(said.starts_with("and "));
                drop(lifeline);
            },
        );
    }

    #[test]
    fn process_that_is_not_there_says_nothing() {
        alone(process_that_is_not_there_says_nothing, || {
            let lifeline = Lifeline::fork(&[], drop).unwrap();

            lifeline.wait();

            lifeline.hang_up();
            assert_eq!(lifeline.listen(None), "");
        });
    }
}
