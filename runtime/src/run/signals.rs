// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals to `coracle run` and `coracle exec` go through to the container.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What is handed on; of a terminal's new size, the size. The rest keeps its usual meaning for this process.
const FORWARDED: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];

/// Those of them by which a user wants an end.
pub const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Signals that arrive for as long as this lives. Its descriptor is readable when one has.
pub struct Forwarding {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    caught: Vec<i32>,
    /// Those that are let through for now, with how they are caught.
    released: Vec<(i32, libc::sigaction)>,
}

impl Forwarding {
    /// Catches the signals from now on; they wait until they are asked for. One that whoever started this process has it
    /// ignore (`nohup`, a shell's `&`) is not for the container either.
    pub fn catch() -> Result<Self> {
        let mut signals = Self::catch_ending()?;
        signals.catch_rest()?;
        Ok(signals)
    }

    /// Catches those alone by which a user wants an end.
    pub fn catch_ending() -> Result<Self> {
        let (read, write) = UnixStream::pair().context("cannot make a socket pair for signals")?;
        let none: [i32; 0] = [];
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, none)
            .context("cannot catch signals")?;
        let mut signals = Self {
            delivery,
            caught: Vec::new(),
            released: Vec::new(),
        };
        signals.add(&ENDING)?;
        Ok(signals)
    }

    /// Lets them through for now: each ends this process, as it would if nobody had caught it.
    pub fn release(&mut self) {
        for &signal in &self.caught {
            // SAFETY: all of it is numbers, and zeroes are no flags, no mask and the default action.
            let usual: libc::sigaction = unsafe { std::mem::zeroed() };
            let mut ours = std::mem::MaybeUninit::uninit();
            // SAFETY: both are of the kernel's type, and the default action runs no code of this process.
            if unsafe { libc::sigaction(signal, &raw const usual, ours.as_mut_ptr()) } == 0 {
                // SAFETY: the call wrote it.
                self.released.push((signal, unsafe { ours.assume_init() }));
            }
        }
    }

    /// Catches the others as well, and again those that were let through.
    pub fn catch_rest(&mut self) -> Result<()> {
        for (signal, ours) in self.released.drain(..) {
            // SAFETY: it is what caught the signal before.
            unsafe { libc::sigaction(signal, &raw const ours, std::ptr::null_mut()) };
        }
        self.add(&FORWARDED)
    }

    fn add(&mut self, signals: &[i32]) -> Result<()> {
        for &signal in signals {
            if !self.caught.contains(&signal) && !is_ignored(signal) {
                self.delivery
                    .handle()
                    .add_signal(signal)
                    .context("cannot catch signals")?;
                self.caught.push(signal);
            }
        }
        Ok(())
    }

    /// A signal that has arrived and not been handed on yet, if any.
    pub fn pending(&mut self) -> Option<i32> {
        self.delivery.pending().next()
    }
}

impl Drop for Forwarding {
    /// From now on a signal ends this process, as it would have before.
    fn drop(&mut self) {
        for &signal in &self.caught {
            // SAFETY: the default action runs no code of this process. What was caught is still ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

impl AsFd for Forwarding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, the call only writes the present one to `action`, which has room for it.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the call wrote it.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn signal_that_was_ignored_stays_so() {
        const AGAIN: &str = "CORACLE_TEST_IGNORES";
        let own_name = "run::signals::tests::signal_that_was_ignored_stays_so";
        // Dispositions are a process's: the test runs again in one that ignores a signal from its start.
        if env::var_os(AGAIN).is_none() {
            let again = Command::new("sh")
                .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
                .arg(env::current_exe().unwrap())
                .args([own_name, "--exact"])
                .env(AGAIN, "1")
                .output()
                .unwrap();
            assert!(again.status.success(), "{again:?}");
            return;
        }
        let mut signals = Forwarding::catch().unwrap();

        for signal in [SIGHUP, SIGUSR1] {
            // SAFETY: one is ignored and the other caught by code that may run at any time.
            unsafe { libc::raise(signal) };
        }

        assert_eq!(signals.pending(), Some(SIGUSR1));
        assert_eq!(signals.pending(), None);
        drop(signals);
        // SAFETY: as above.
        unsafe { libc::raise(SIGHUP) };
    }

    #[test]
    fn signal_that_is_let_through_ends_the_process_until_it_is_caught_again() {
        const AGAIN: &str = "CORACLE_TEST_LETS_THROUGH";
        let own_name = "run::signals::tests::signal_that_is_let_through_ends_the_process_until_it_is_caught_again";
        // SAFETY: the process is there for this.
        let raise = || unsafe { libc::raise(SIGTERM) };
        match env::var(AGAIN).as_deref() {
            Ok("let through") => {
                let mut signals = Forwarding::catch_ending().unwrap();
                signals.release();
                raise();
            }
            Ok(_) => {
                let mut signals = Forwarding::catch_ending().unwrap();
                signals.release();
                signals.catch_rest().unwrap();
                raise();
                assert_eq!(signals.pending(), Some(SIGTERM));
            }
            Err(_) => {
                let outcome = |what| {
                    let mut again = Command::new(env::current_exe().unwrap());
                    again.args([own_name, "--exact"]).env(AGAIN, what);
                    again.output().unwrap().status
                };
                assert_eq!(outcome("let through").signal(), Some(SIGTERM));
                assert!(outcome("caught again").success());
            }
        }
    }
}
