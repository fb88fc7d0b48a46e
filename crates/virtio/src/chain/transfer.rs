// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moves bytes between a chain's buffers and Rust values, byte buffers and files.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use coracle_memory::{GuestSlice, IoVecs, ScatterList};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How many ranges one system call takes (IOV_MAX on Linux).
const MAX_IOVECS: usize = 1024;

/// A chain has fewer bytes than a transfer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} bytes of a chain were wanted, and {remaining} are left")]
pub struct TransferError {
    /// How many bytes were wanted.
    pub wanted: usize,
    /// How many there were.
    pub remaining: usize,
}

/// Reads the readable buffers of a [`Chain`](crate::Chain) as one stream of bytes.
#[derive(Debug)]
pub struct Reader<'c> {
    cursor: Cursor<'c>,
}

impl<'c> Reader<'c> {
    pub(super) fn new(
        list: &'c ScatterList,
        slices: Range<usize>,
        len: u32,
        scratch: &'c Cell<IoVecs>,
    ) -> Self {
        Self {
            cursor: Cursor::new(list, slices, len, scratch),
        }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// How many bytes were read or skipped.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.cursor.consumed
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if too little is left, and then nothing was read.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TransferError> {
        self.cursor.require(buffer.len())?;
        self.read(buffer);
        Ok(())
    }

    /// Reads as much as is left or fits into `buffer`, and says how much.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        self.cursor.take(buffer.len(), |slice| {
            done += slice.copy_to(&mut buffer[done..]);
        });
        done
    }

    /// Reads a plain value.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if too little is left, and then nothing was read.
    pub fn read_obj<T: FromBytes + IntoBytes>(&mut self) -> Result<T, TransferError> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Skips `len` bytes.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if too little is left, and then nothing was skipped.
    pub fn skip(&mut self, len: usize) -> Result<(), TransferError> {
        self.cursor.require(len)?;
        self.cursor.take(len, |_| ());
        Ok(())
    }

    /// What is left, at most `max_len` bytes of it, as system calls take it. Does not advance:
    /// [`skip`](Self::skip) what the call has taken. System calls take 1024 ranges at most.
    #[must_use]
    pub fn iovecs(&mut self, max_len: usize) -> &[libc::iovec] {
        self.cursor.iovecs(max_len, usize::MAX)
    }

    /// Writes what is left, at most `max_len` bytes of it, to `file` at its position, in one
    /// system call, and says how much was written.
    ///
    /// # Errors
    ///
    /// As for `writev(2)`, and then nothing was read.
    pub fn write_to(&mut self, file: impl AsFd, max_len: usize) -> io::Result<usize> {
        let fd = file.as_fd().as_raw_fd();
        self.cursor.transfer(max_len, |ranges, count| {
            // SAFETY: the chain keeps the memory of `ranges` mapped, and the kernel only reads it.
            unsafe { libc::writev(fd, ranges, count) }
        })
    }

    /// As [`write_to`](Self::write_to), at `offset` bytes into the file.
    ///
    /// # Errors
    ///
    /// As for `pwritev(2)`, and then nothing was read.
    pub fn write_to_at(
        &mut self,
        file: impl AsFd,
        offset: u64,
        max_len: usize,
    ) -> io::Result<usize> {
        let fd = file.as_fd().as_raw_fd();
        let offset = file_offset(offset)?;
        self.cursor.transfer(max_len, |ranges, count| {
            // SAFETY: as in `write_to`.
            unsafe { libc::pwritev(fd, ranges, count, offset) }
        })
    }
}

/// Writes the writable buffers of a [`Chain`](crate::Chain) as one stream of bytes.
#[derive(Debug)]
pub struct Writer<'c> {
    cursor: Cursor<'c>,
}

impl<'c> Writer<'c> {
    pub(super) fn new(
        list: &'c ScatterList,
        slices: Range<usize>,
        len: u32,
        scratch: &'c Cell<IoVecs>,
    ) -> Self {
        Self {
            cursor: Cursor::new(list, slices, len, scratch),
        }
    }

    /// How many bytes there is room for.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// How many bytes were written or skipped, from the start: what
    /// [`Queue::add_used`](crate::Queue::add_used) wants to know.
    #[must_use]
    pub fn written(&self) -> u32 {
        // A chain has at most u32::MAX bytes.
        u32::try_from(self.cursor.consumed).unwrap_or(u32::MAX)
    }

    /// Writes all of `buffer`.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if there is too little room, and then nothing was written.
    pub fn write_all(&mut self, buffer: &[u8]) -> Result<(), TransferError> {
        self.cursor.require(buffer.len())?;
        self.write(buffer);
        Ok(())
    }

    /// Writes as much of `buffer` as there is room for, and says how much.
    pub fn write(&mut self, buffer: &[u8]) -> usize {
        let mut done = 0;
        self.cursor.take(buffer.len(), |slice| {
            done += slice.copy_from(&buffer[done..]);
        });
        done
    }

    /// Writes a plain value.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if there is too little room, and then nothing was written.
    pub fn write_obj<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), TransferError> {
        self.write_all(value.as_bytes())
    }

    /// Leaves `len` bytes as they are, to be written by another writer, or by whoever took
    /// the [`iovecs`](Self::iovecs).
    ///
    /// # Errors
    ///
    /// [`TransferError`] if there is too little room, and then nothing was skipped.
    pub fn skip(&mut self, len: usize) -> Result<(), TransferError> {
        self.cursor.require(len)?;
        self.cursor.take(len, |_| ());
        Ok(())
    }

    /// The room that is left, at most `max_len` bytes of it, as system calls take it. Does not
    /// advance: [`skip`](Self::skip) what the call has filled. System calls take 1024 ranges
    /// at most.
    #[must_use]
    pub fn iovecs(&mut self, max_len: usize) -> &[libc::iovec] {
        self.cursor.iovecs(max_len, usize::MAX)
    }

    /// Fills the room that is left, at most `max_len` bytes of it, from `file` at its position,
    /// in one system call, and says how much was read; 0 is the end of the file.
    ///
    /// # Errors
    ///
    /// As for `readv(2)`, and then nothing was written.
    pub fn read_from(&mut self, file: impl AsFd, max_len: usize) -> io::Result<usize> {
        let fd = file.as_fd().as_raw_fd();
        self.cursor.transfer(max_len, |ranges, count| {
            // SAFETY: the chain keeps the memory of `ranges` mapped, and no reference to it exists.
            unsafe { libc::readv(fd, ranges, count) }
        })
    }

    /// As [`read_from`](Self::read_from), at `offset` bytes into the file.
    ///
    /// # Errors
    ///
    /// As for `preadv(2)`, and then nothing was written.
    pub fn read_from_at(
        &mut self,
        file: impl AsFd,
        offset: u64,
        max_len: usize,
    ) -> io::Result<usize> {
        let fd = file.as_fd().as_raw_fd();
        let offset = file_offset(offset)?;
        self.cursor.transfer(max_len, |ranges, count| {
            // SAFETY: as in `read_from`.
            unsafe { libc::preadv(fd, ranges, count, offset) }
        })
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A position in a run of slices.
struct Cursor<'c> {
    list: &'c ScatterList,
    /// The slices that are left; the first one from `offset` on.
    slices: Range<usize>,
    offset: usize,
    remaining: usize,
    consumed: usize,
    /// Where a list of cut slices is borrowed from, and goes back to.
    lender: &'c Cell<IoVecs>,
    cut: IoVecs,
}

impl<'c> Cursor<'c> {
    fn new(
        list: &'c ScatterList,
        slices: Range<usize>,
        len: u32,
        lender: &'c Cell<IoVecs>,
    ) -> Self {
        Self {
            list,
            slices,
            offset: 0,
            remaining: len as usize,
            consumed: 0,
            lender,
            cut: lender.take(),
        }
    }

    fn require(&self, wanted: usize) -> Result<(), TransferError> {
        let remaining = self.remaining;
        if wanted <= remaining {
            Ok(())
        } else {
            Err(TransferError { wanted, remaining })
        }
    }

    /// Advances by `len` bytes or what is left, giving each slice on the way to `visit`.
    fn take(&mut self, len: usize, mut visit: impl FnMut(GuestSlice<'c>)) {
        let mut left = len.min(self.remaining);
        self.remaining -= left;
        self.consumed += left;
        while left > 0 {
            let Some((slice, is_whole)) = self.next_slice(left) else {
                return;
            };
            visit(slice);
            left -= slice.len();
            if is_whole {
                self.slices.start += 1;
                self.offset = 0;
            } else {
                self.offset += slice.len();
            }
        }
    }

    /// The slice at the position, at most `max_len` bytes of it, and whether it reaches the end
    /// of its buffer.
    fn next_slice(&self, max_len: usize) -> Option<(GuestSlice<'c>, bool)> {
        if self.slices.is_empty() {
            return None;
        }
        let slice = self.list.get(self.slices.start)?;
        let left = slice.len() - self.offset;
        let part = slice.sub(self.offset, left.min(max_len))?;
        Some((part, part.len() == left))
    }

    fn iovecs(&mut self, max_len: usize, max_count: usize) -> &[libc::iovec] {
        if self.offset == 0 && max_len >= self.remaining && self.slices.len() <= max_count {
            return &self.list.iovecs()[self.slices.clone()];
        }
        self.cut.clear();
        let mut left = max_len.min(self.remaining);
        let mut offset = self.offset;
        for index in self.slices.clone().take(max_count) {
            let part = self
                .list
                .get(index)
                .and_then(|slice| slice.sub(offset, left.min(slice.len() - offset)));
            let Some(part) = part.filter(|part| !part.is_empty()) else {
                break;
            };
            self.cut.push(part);
            left -= part.len();
            offset = 0;
        }
        self.cut.as_slice()
    }

    /// Gives the ranges at the position to a system call, and advances by what it returns.
    fn transfer(
        &mut self,
        max_len: usize,
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let ranges = self.iovecs(max_len, MAX_IOVECS);
        // Never more than MAX_IOVECS.
        let count = libc::c_int::try_from(ranges.len()).unwrap_or(libc::c_int::MAX);
        let done = call(ranges.as_ptr(), count);
        let done = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
        self.take(done, |_| ());
        Ok(done)
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
