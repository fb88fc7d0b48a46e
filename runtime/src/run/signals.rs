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

/// Signals that arrive for as long as this lives. Its descriptor is readable when one has.
pub struct Forwarding(SignalDelivery<UnixStream, SignalOnly>);

impl Forwarding {
    /// Catches the signals from now on; they wait until they are asked for.
    pub fn catch() -> Result<Self> {
        let (read, write) = UnixStream::pair().context("cannot make a socket pair for signals")?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, FORWARDED)
            .context("cannot catch signals")?;
        Ok(Self(delivery))
    }

    /// A signal that has arrived and not been handed on yet, if any.
    pub fn pending(&mut self) -> Option<i32> {
        self.0.pending().next()
    }
}

impl Drop for Forwarding {
    /// From now on a signal ends this process, as it would have before.
    fn drop(&mut self) {
        for signal in FORWARDED {
            // SAFETY: the default action runs no code of this process. What was caught is still ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

impl AsFd for Forwarding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}
