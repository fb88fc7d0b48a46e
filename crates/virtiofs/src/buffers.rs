// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's own pages as the source and the destination of file data: no byte of it is copied here.
//!
//! The guest may write to these pages at any moment, so nothing hands out a reference to what is in them.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// The most buffers that one system call takes (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// Data that the guest wants written, in its own pages.
#[derive(Debug)]
pub struct Source<'m> {
    iovecs: &'m [libc::iovec],
}

/// Room for data that the guest wants to read, in its own pages.
#[derive(Debug)]
pub struct Destination<'m> {
    iovecs: &'m [libc::iovec],
}

impl<'m> Source<'m> {
    /// # Safety
    /// Each range must stay mapped readable for `'m`, and no Rust reference may point into one.
    pub(crate) unsafe fn new(iovecs: &'m [libc::iovec]) -> Self {
        Self { iovecs }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        total(self.iovecs)
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes everything to `file`, at `offset` or, if `append`, at its end; says how many bytes went in.
    ///
    /// # Errors
    /// What `pwritev2` says, unless something was written before.
    pub fn write_to(&self, file: impl AsFd, offset: u64, append: bool) -> Result<usize, Errno> {
        let fd = file.as_fd().as_raw_fd();
        let flags = if append { libc::RWF_APPEND } else { 0 };
        transfer(self.iovecs, offset, |iovecs, count, offset| {
            // SAFETY: the constructor's caller vouches that the ranges are mapped; the kernel only reads them.
            unsafe { libc::pwritev2(fd, iovecs, count, offset, flags) }
        })
    }
}

impl<'m> Destination<'m> {
    /// # Safety
    /// Each range must stay mapped writable for `'m`, and no Rust reference may point into one.
    pub(crate) unsafe fn new(iovecs: &'m [libc::iovec]) -> Self {
        Self { iovecs }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        total(self.iovecs)
    }

    /// Whether there is no room at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads from `file` at `offset` until the room or the file ends; says how many bytes.
    ///
    /// # Errors
    /// What `preadv` says, unless something was read before.
    pub fn read_from(&self, file: impl AsFd, offset: u64) -> Result<usize, Errno> {
        let fd = file.as_fd().as_raw_fd();
        transfer(self.iovecs, offset, |iovecs, count, offset| {
            // SAFETY: the constructor's caller vouches that the ranges are mapped writable and that no
            // reference points into them, so whatever the kernel writes is fine.
            unsafe { libc::preadv(fd, iovecs, count, offset) }
        })
    }

    /// Copies `bytes`, as much as there is room for; says how many. For file systems that hold their data
    /// in memory.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        for iovec in self.iovecs {
            let (now, rest) = left.split_at(left.len().min(iovec.iov_len));
            // SAFETY: the range is mapped writable for at least `now.len()` bytes (see `new`), and is guest
            // memory, which a Rust slice cannot overlap.
            unsafe {
                iovec
                    .iov_base
                    .cast::<u8>()
                    .copy_from_nonoverlapping(now.as_ptr(), now.len())
            };
            left = rest;
        }
        bytes.len() - left.len()
    }
}

fn total(iovecs: &[libc::iovec]) -> usize {
    iovecs
        .iter()
        .map(|iovec| iovec.iov_len)
        .fold(0, usize::saturating_add)
}

/// Calls `call` for as many buffers at a time as the kernel takes. To stop short of the end would tell the
/// guest that the file ends there, so only a call that moved less than it was given ends it early.
fn transfer(
    iovecs: &[libc::iovec],
    offset: u64,
    mut call: impl FnMut(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> Result<usize, Errno> {
    let mut done = 0_usize;
    for chunk in iovecs.chunks(MAX_IOVECS) {
        let at = offset
            .checked_add(done as u64)
            .and_then(|at| libc::off_t::try_from(at).ok())
            .ok_or(Errno::INVAL)?;
        let count = libc::c_int::try_from(chunk.len()).map_err(|_| Errno::INVAL)?;
        let moved = match usize::try_from(call(chunk.as_ptr(), count, at)) {
            Ok(moved) => moved,
            Err(_) if done > 0 => break,
            Err(_) => return Err(last_error()),
        };
        done += moved;
        if moved < total(chunk) {
            break;
        }
    }
    Ok(done)
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn iovec(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    #[test]
    fn more_buffers_than_one_call_takes_are_all_filled() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3000]).unwrap();
        let mut bytes = vec![0_u8; 3000];
        let iovecs: Vec<_> = bytes.chunks_mut(1).map(iovec).collect();
        // SAFETY: `bytes` outlives the destination and is not looked at meanwhile.
        let destination = unsafe { Destination::new(&iovecs) };

        let read = destination.read_from(&file, 0);

        assert_eq!(read, Ok(3000));
        assert_eq!(bytes, [7; 3000]);
    }

    #[test]
    fn an_offset_beyond_what_a_file_can_have_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = [0_u8; 1];
        let iovecs = [iovec(&mut bytes)];
        // SAFETY: `bytes` outlives the source and is not looked at meanwhile.
        let source = unsafe { Source::new(&iovecs) };

        assert_eq!(source.write_to(&file, u64::MAX, false), Err(Errno::INVAL));
    }
}
