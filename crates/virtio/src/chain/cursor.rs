// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A position in a chain's buffers: what readers and writers have in common.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Range;

use coracle_memory::{GuestSlice, IoVecs, ScatterList};

use super::TransferError;

/// How many ranges one system call takes (IOV_MAX on Linux).
const MAX_IOVECS: usize = 1024;

/// The bytes that are left of a run of slices, and how many are behind.
pub(super) struct Cursor<'c> {
    rest: Rest<'c>,
    remaining: usize,
    consumed: usize,
    /// Where a list of cut slices is borrowed from, and goes back to.
    lender: &'c Cell<IoVecs>,
    cut: IoVecs,
}

impl<'c> Cursor<'c> {
    /// At the start of `slices`, which together have `len` bytes.
    pub(super) fn new(
        list: &'c ScatterList,
        slices: Range<usize>,
        len: u32,
        lender: &'c Cell<IoVecs>,
    ) -> Self {
        Self {
            rest: Rest {
                list,
                slices,
                offset: 0,
            },
            remaining: len as usize,
            consumed: 0,
            lender,
            cut: lender.take(),
        }
    }

    pub(super) const fn remaining(&self) -> usize {
        self.remaining
    }

    pub(super) const fn consumed(&self) -> usize {
        self.consumed
    }

    pub(super) const fn require(&self, wanted: usize) -> Result<(), TransferError> {
        let remaining = self.remaining;
        if wanted <= remaining {
            Ok(())
        } else {
            Err(TransferError { wanted, remaining })
        }
    }

    pub(super) fn skip(&mut self, len: usize) -> Result<(), TransferError> {
        self.require(len)?;
        self.take(len, |_| ());
        Ok(())
    }

    /// Advances by `len` bytes or what is left, giving each slice on the way to `visit`.
    pub(super) fn take(&mut self, len: usize, mut visit: impl FnMut(GuestSlice<'c>)) {
        let mut left = len.min(self.remaining);
        self.remaining -= left;
        self.consumed += left;
        while let Some(slice) = self.rest.next(left) {
            left -= slice.len();
            visit(slice);
        }
    }

    /// The ranges from here on, at most `max_len` bytes of them.
    pub(super) fn iovecs(&mut self, max_len: usize) -> &[libc::iovec] {
        self.ranges(max_len, usize::MAX)
    }

    /// Gives the ranges from here on to a system call, and advances by what it returns.
    pub(super) fn transfer(
        &mut self,
        max_len: usize,
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let ranges = self.ranges(max_len, MAX_IOVECS);
        // Never more than MAX_IOVECS.
        let count = libc::c_int::try_from(ranges.len()).unwrap_or(libc::c_int::MAX);
        let done = call(ranges.as_ptr(), count);
        let done = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
        self.take(done, |_| ());
        Ok(done)
    }

    fn ranges(&mut self, max_len: usize, max_count: usize) -> &[libc::iovec] {
        let rest = &self.rest;
        if rest.offset == 0 && max_len >= self.remaining && rest.slices.len() <= max_count {
            return &rest.list.iovecs()[rest.slices.clone()];
        }
        self.cut.clear();
        let mut rest = rest.clone();
        let mut left = max_len.min(self.remaining);
        for _ in 0..max_count {
            let Some(slice) = rest.next(left) else {
                break;
            };
            left -= slice.len();
            self.cut.push(slice);
        }
        self.cut.as_slice()
    }
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        self.lender.set(std::mem::take(&mut self.cut));
    }
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("consumed", &self.consumed)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

/// The slices that are left; of the first one, what is from `offset` on.
#[derive(Clone)]
struct Rest<'c> {
    list: &'c ScatterList,
    slices: Range<usize>,
    offset: usize,
}

impl<'c> Rest<'c> {
    /// The next slice, or as much of it as `max_len` allows, which is then behind.
    #[inline]
    fn next(&mut self, max_len: usize) -> Option<GuestSlice<'c>> {
        if max_len == 0 || self.slices.is_empty() {
            return None;
        }
        let slice = self.list.get(self.slices.start)?;
        let left = slice.len() - self.offset;
        let part = slice.sub(self.offset, left.min(max_len))?;
        if part.len() == left {
            self.slices.start += 1;
            self.offset = 0;
        } else {
            self.offset += part.len();
        }
        Some(part)
    }
}
