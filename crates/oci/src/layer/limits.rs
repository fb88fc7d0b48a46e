// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much one image may unpack: compressed layers can be a thousand times smaller than what
//! they fill a disk with.

use std::io::{self, Read};

/// Bounds over all layers of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of uncompressed tar streams. Holes of sparse files, which take no room, are not in them.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 64 GiB in two million entries.
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
        }
    }
}

/// A reader that fails once more has passed than is left.
pub(super) struct Metered<'l, R> {
    inner: R,
    left: &'l mut u64,
    exceeded: bool,
}

impl<'l, R: Read> Metered<'l, R> {
    pub(super) fn new(inner: R, left: &'l mut u64) -> Self {
        Self {
            inner,
            left,
            exceeded: false,
        }
    }

    /// Whether the limit was what made it fail.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                *self.left = left;
                Ok(count)
            }
            None => {
                self.exceeded = true;
                Err(io::ErrorKind::FileTooLarge.into())
            }
        }
    }
}
