// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A slice for those who keep it longer than a borrow lasts: a virtqueue's rings, for example.

use std::ptr::NonNull;

use crate::{GuestMemory, GuestSlice};

/// A contiguous range of guest memory that was checked once, and keeps the memory mapped.
#[derive(Clone, Debug)]
pub struct OwnedSlice {
    start: NonNull<u8>,
    len: usize,
    _memory: GuestMemory,
}

// SAFETY: an address and a length in memory that `_memory` keeps mapped wherever this goes; it
// is reached through raw copies and atomics alone.
unsafe impl Send for OwnedSlice {}
// SAFETY: as above.
unsafe impl Sync for OwnedSlice {}

impl OwnedSlice {
    /// `slice` must be of `memory`; the borrow proves it to be checked.
    pub(crate) fn new(memory: &GuestMemory, slice: GuestSlice<'_>) -> Self {
        Self {
            start: slice.start(),
            len: slice.len(),
            _memory: memory.clone(),
        }
    }

    /// The range, to read and write.
    #[must_use]
    pub fn as_slice(&self) -> GuestSlice<'_> {
        // SAFETY: `_memory` keeps the range mapped while `self` lives.
        unsafe { GuestSlice::new(self.start, self.len) }
    }
}
