// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals to `coracle run` go through to the container.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What is handed on. The rest keeps its usual meaning for this process.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// Signals that arrive from the moment this is made. Its descriptor is readable when one has.
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

    /// Hands each signal to `deliver`, on a thread of its own, until the process ends.
    pub fn start(mut self, deliver: impl Fn(i32) + Send + 'static) -> Result<()> {
        let body = move || {
            loop {
                self.0.pending().for_each(&deliver);
                // An interrupted wait looks again.
                let _ = poll(&mut [PollFd::new(&self, PollFlags::IN)], None);
            }
        };
        thread::Builder::new()
            .name("signals".into())
            .spawn(body)
            .context("cannot start the thread that hands on signals")?;
        Ok(())
    }
}

impl AsFd for Forwarding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}
