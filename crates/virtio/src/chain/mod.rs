// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains: how one is walked and checked, what it holds, and how bytes get in and out.

mod cursor;
mod descriptor;
mod transfer;
mod walk;

use std::cell::Cell;
use std::fmt;

use coracle_memory::{IoVecs, ScatterList};

use cursor::Cursor;
pub use descriptor::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
pub use transfer::{Reader, TransferError, Writer};
pub(crate) use walk::walk_table;
pub use walk::{ChainError, walk};

/// The buffers of one descriptor chain: first those that the device reads, then those that it
/// writes, every one checked to be guest memory (virtio 1.3, section 2.7.4).
///
/// Made once and filled again for each request: in the steady state nothing is allocated. It
/// keeps the memory it points into mapped, and may outlive the queue that filled it.
#[derive(Default)]
pub struct Chain {
    head: u16,
    buffers: ScatterList,
    /// How many of the slices in `buffers`, the first ones, are readable.
    readable_slices: usize,
    readable_len: u32,
    writable_len: u32,
    /// Lists lent to readers and writers for the slices they have to cut.
    scratch: [Cell<IoVecs>; 2],
}

impl Chain {
    /// An empty chain, to be filled by [`Queue::pop`](crate::Queue::pop) or [`walk`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the first descriptor: what the driver knows the chain by.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// How many bytes the device may read.
    #[must_use]
    pub const fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// How many bytes the device may write.
    #[must_use]
    pub const fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Reads what the driver sent, from the start. Any number of readers and writers may be
    /// in use at once; each has a position of its own.
    #[must_use]
    pub fn readable(&self) -> Reader<'_> {
        let slices = 0..self.readable_slices;
        let cursor = Cursor::new(&self.buffers, slices, self.readable_len, &self.scratch[0]);
        Reader { cursor }
    }

    /// Writes the answer, from the start.
    #[must_use]
    pub fn writable(&self) -> Writer<'_> {
        let slices = self.readable_slices..self.buffers.len();
        let cursor = Cursor::new(&self.buffers, slices, self.writable_len, &self.scratch[1]);
        Writer { cursor }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head)
            .field("readable_len", &self.readable_len)
            .field("writable_len", &self.writable_len)
            .finish_non_exhaustive()
    }
}
