// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moves bytes between a chain's buffers and Rust values, byte buffers and files.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::cursor::Cursor;

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
    pub(super) cursor: Cursor<'c>,
}

impl Reader<'_> {
    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }

    /// How many bytes were read or skipped.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.cursor.consumed()
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
        self.cursor.skip(len)
    }

    /// What is left, at most `max_len` bytes of it, as system calls take it. Does not advance:
    /// [`skip`](Self::skip) what the call has taken. System calls take 1024 ranges at most.
    #[must_use]
    pub fn iovecs(&mut self, max_len: usize) -> &[libc::iovec] {
        self.cursor.iovecs(max_len)
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
    pub(super) cursor: Cursor<'c>,
}

impl Writer<'_> {
    /// How many bytes there is room for.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }

    /// How many bytes were written or skipped, from the start: what
    /// [`Queue::add_used`](crate::Queue::add_used) wants to know.
    #[must_use]
    pub fn written(&self) -> u32 {
        // A chain has at most u32::MAX bytes.
        u32::try_from(self.cursor.consumed()).unwrap_or(u32::MAX)
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
        self.cursor.skip(len)
    }

    /// The room that is left, at most `max_len` bytes of it, as system calls take it. Does not
    /// advance: [`skip`](Self::skip) what the call has filled. System calls take 1024 ranges
    /// at most.
    #[must_use]
    pub fn iovecs(&mut self, max_len: usize) -> &[libc::iovec] {
        self.cursor.iovecs(max_len)
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
