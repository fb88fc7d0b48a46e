// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's ends of a console: where output goes and where input comes from.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// Bytes read from the host at a time.
const INPUT_BLOCK: usize = 4096;

/// What a console talks to. It outlives the worker, which a reset of the device ends.
pub(super) struct Backend {
    output: Mutex<Box<dyn Write + Send>>,
    input: Option<OwnedFd>,
}

impl Backend {
    pub(super) fn new(output: Box<dyn Write + Send>, input: Option<OwnedFd>) -> Self {
        Backend {
            output: Mutex::new(output),
            input,
        }
    }

    pub(super) fn output(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        // A writer that panicked is no worse than one that fails: its output is lost.
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn input_fd(&self) -> Option<RawFd> {
        self.input.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// Input read from the host that the guest has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    block: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Input {
    /// Reads once from the host. Called only when nothing is pending, so what a guest that never
    /// reads its console makes the host hold is one block.
    pub(super) fn fill(&mut self, backend: &Backend) {
        let Some(fd) = &backend.input else {
            self.ended = true;
            return;
        };
        self.taken = 0;
        self.block.resize(INPUT_BLOCK, 0);
        let count = match rustix::io::read(fd, &mut self.block[..]) {
            Ok(0) => {
                self.ended = true;
                0
            }
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // A terminal whose other side is gone gives EIO: an end like any other.
            Err(_) => {
                self.ended = true;
                0
            }
        };
        self.block.truncate(count);
    }

    /// There is nothing to read, now or later.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn pending(&self) -> &[u8] {
        &self.block[self.taken..]
    }

    pub(super) fn take(&mut self, count: usize) {
        self.taken = self.block.len().min(self.taken.saturating_add(count));
    }

    /// Whether the host should be asked for more.
    pub(super) fn wants_more(&self) -> bool {
        !self.ended && self.pending().is_empty()
    }
}
