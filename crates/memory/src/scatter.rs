// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of ranges for scatter-gather system calls, made to be filled again without allocating.

use std::fmt;
use std::ptr::NonNull;

use crate::{AccessError, GuestAddress, GuestMemory, GuestSlice};

/// A list of `iovec`s, which may be sent to another thread: it holds addresses as plain data,
/// and says nothing about how long the memory there lasts.
#[derive(Default)]
pub struct IoVecs {
    list: Vec<libc::iovec>,
}

// SAFETY: nothing here reads or writes through the addresses; whoever does needs `unsafe`.
unsafe impl Send for IoVecs {}
// SAFETY: as above.
unsafe impl Sync for IoVecs {}

impl IoVecs {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Empties the list, keeping its capacity.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds a slice at the end.
    pub fn push(&mut self, slice: GuestSlice<'_>) {
        self.list.push(slice.as_iovec());
    }

    /// The list, as system calls take it.
    #[must_use]
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.list
    }
}

impl fmt::Debug for IoVecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.list.iter().map(|v| (v.iov_base, v.iov_len)))
            .finish()
    }
}

/// A list of checked ranges of one guest's memory, which it keeps mapped.
///
/// [`reset`](Self::reset) empties it for the next use and keeps its capacity.
#[derive(Debug, Default)]
pub struct ScatterList {
    memory: Option<GuestMemory>,
    ranges: IoVecs,
}

impl ScatterList {
    /// An empty list of no memory yet: [`reset`](Self::reset) comes before the first push.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            memory: None,
            ranges: IoVecs::new(),
        }
    }

    /// Empties the list; what is pushed from now on is of `memory`.
    pub fn reset(&mut self, memory: &GuestMemory) {
        self.ranges.clear();
        let same = self.memory.as_ref().is_some_and(|old| old.is_same(memory));
        if !same {
            self.memory = Some(memory.clone());
        }
    }

    /// Adds `len` bytes at `address`: one slice for each region that they touch.
    ///
    /// # Errors
    ///
    /// [`AccessError`], and then nothing was added.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> Result<(), AccessError> {
        let memory = self.memory.as_ref().ok_or(AccessError::Unmapped {
            address,
            len,
            hole: address,
        })?;
        if let Ok(slice) = memory.slice(address, len) {
            self.ranges.push(slice);
        } else {
            for slice in memory.slices(address, len)? {
                self.ranges.push(slice);
            }
        }
        Ok(())
    }

    /// Number of slices, which is not the number of pushes where a range touches two regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.list.len()
    }

    /// Whether there is no slice.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.list.is_empty()
    }

    /// The slice at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<GuestSlice<'_>> {
        let range = self.ranges.list.get(index)?;
        let start = NonNull::new(range.iov_base.cast::<u8>())?;
        // SAFETY: every range was pushed as a checked slice of `memory`, which is kept mapped.
        Some(unsafe { GuestSlice::new(start, range.iov_len) })
    }

    /// The slices in order.
    pub fn iter(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The list, as system calls take it.
    #[must_use]
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.ranges.as_slice()
    }
}
