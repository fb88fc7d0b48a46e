// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory from address 0: one private mapping, aligned so that it can have huge pages.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

const HUGE_PAGE: usize = 2 << 20;

/// A mapping that is never undone.
pub struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    /// Maps `length` bytes.
    pub fn new(length: usize) -> Result<Self, Error> {
        // SAFETY: asks for fresh memory at an address of the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length + HUGE_PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let mapped = mapped.cast::<u8>();
        // SAFETY: the mapping is longer than `length` by the alignment.
        let start = unsafe { mapped.add(mapped.align_offset(HUGE_PAGE)) };
        // SAFETY: the range is inside the mapping; advice does not change its content.
        unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) };
        Ok(Self { start, length })
    }

    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Where it is mapped.
    pub fn address(&self) -> *mut u8 {
        self.start
    }

    /// Copies `bytes` to guest address `at`.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let at = self.checked(at, bytes.len());
        // SAFETY: the range was checked to be inside the mapping, which `bytes` cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Reads `length` bytes of `file` from `offset` to guest address `at`.
    pub fn read_from(&self, at: u64, file: &File, offset: u64, length: usize) -> Result<(), Error> {
        let to = self.checked(at, length);
        let mut done = 0;
        while done < length {
            let offset = i64::try_from(offset + done as u64).map_err(Error::other)?;
            // SAFETY: the range was checked to be inside the mapping.
            let count = unsafe {
                libc::pread(file.as_raw_fd(), to.add(done).cast(), length - done, offset)
            };
            match usize::try_from(count) {
                Ok(0) => return Err(Error::other("the file is cut short")),
                Ok(count) => done += count,
                Err(_) => return Err(Error::last_os_error()),
            }
        }
        Ok(())
    }

    fn checked(&self, at: u64, length: usize) -> *mut u8 {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        assert!(
            at.checked_add(length).is_some_and(|end| end <= self.length),
            "{at:#x} is outside guest memory"
        );
        // SAFETY: `at` is inside the mapping.
        unsafe { self.start.add(at) }
    }
}
