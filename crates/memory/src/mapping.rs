// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host mappings that start on a 2 MiB boundary, unmapped when dropped.
//!
//! `mmap` alone gives 4 KiB alignment, and a region that starts off a 2 MiB boundary gets no
//! huge page where guest and host addresses disagree in their low 21 bits: neither in the host's
//! page tables nor in the second-stage tables that KVM builds.

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::io;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Size of a page in bytes: regions are multiples of it.
pub const PAGE_SIZE: u64 = 4096;

/// Size of a huge page in bytes: host mappings start at a multiple of it.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

const ALIGNMENT: usize = 2 << 20;

/// A host mapping of guest memory, which it alone owns.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: `Mapping` is an address and a length; the memory behind it belongs to the process, not
// to a thread, and is reached through raw copies and atomics alone.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` gives nothing but the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroed private memory, not reserved against the host's commit limit.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let mapping = Self::reserve(len)?;
        // SAFETY: MAP_FIXED replaces exactly the range that `mapping` owns, and nothing refers
        // to the inaccessible pages that were there.
        unsafe {
            mm::mmap_anonymous(
                mapping.start.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )?;
        }
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    /// `len` bytes of `file` from `offset` on, shared with whoever else maps the file.
    pub(crate) fn shared(file: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        let mapping = Self::reserve(len)?;
        // SAFETY: as in `anonymous`.
        unsafe {
            mm::mmap(
                mapping.start.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                file,
                offset,
            )?;
        }
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Claims `len` aligned bytes of address space, inaccessible for now: more than that is
    /// mapped, and what lies before and after the aligned part given back.
    fn reserve(len: usize) -> io::Result<Self> {
        let padded = len.checked_add(ALIGNMENT).ok_or(io::Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                padded,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        }
        .cast::<u8>();
        let head = base.align_offset(ALIGNMENT);
        let tail = ALIGNMENT - head;
        // SAFETY: `head` is less than ALIGNMENT, so the sums stay inside the `padded` bytes.
        let (start, end) = unsafe { (base.add(head), base.add(head + len)) };
        // SAFETY: both ranges are inside the mapping just made, outside the part kept, and
        // unused. `tail` is a multiple of the page size as long as `len` is (checked by callers).
        unsafe {
            if head > 0 {
                mm::munmap(base.cast::<c_void>(), head)?;
            }
            mm::munmap(end.cast::<c_void>(), tail)?;
        }
        NonNull::new(start)
            .map(|start| Self { start, len })
            .ok_or(io::Errno::NOMEM)
    }

    /// Asks for huge pages. A host without them refuses, and works more slowly: no error.
    fn advise_huge_pages(&self) {
        // SAFETY: the range is a mapping of ours, and the advice changes no content.
        let _ = unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `self` owns the range, and everything that reads it holds the `Mapping`.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the page at `address` is mapped in this process.
    fn is_mapped(address: usize) -> bool {
        let mut resident = 0u8;
        // SAFETY: mincore only looks at the page tables; one page fills one byte.
        unsafe {
            libc::mincore(
                address as *mut c_void,
                PAGE_SIZE as usize,
                &raw mut resident,
            ) == 0
        }
    }

    /// How much address space this process has.
    fn address_space_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn start_is_aligned_to_a_huge_page() {
        let mappings: Vec<_> = (1..6)
            .map(|pages| Mapping::anonymous(pages * PAGE_SIZE as usize).unwrap())
            .collect();

        for mapping in &mappings {
            assert_eq!(mapping.start.as_ptr() as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn the_whole_length_is_mapped() {
        let mapping = Mapping::anonymous(2 * PAGE_SIZE as usize).unwrap();

        let start = mapping.start.as_ptr() as usize;
        assert!(is_mapped(start));
        assert!(is_mapped(start + PAGE_SIZE as usize));
    }

    #[test]
    fn address_space_around_the_mapping_is_given_back() {
        let before = address_space_pages();

        let mappings: Vec<_> = (0..1000)
            .map(|_| Mapping::anonymous(PAGE_SIZE as usize).unwrap())
            .collect();

        // Kept, the padding of 1000 mappings would be 2 GB.
        let grown = address_space_pages() - before;
        assert!(grown < (1 << 30) / PAGE_SIZE as usize, "{grown} pages");
        drop(mappings);
    }

    #[test]
    fn drop_unmaps() {
        let mapping = Mapping::anonymous(64 << 20).unwrap();
        let middle = mapping.start.as_ptr() as usize + (32 << 20);
        assert!(is_mapped(middle));

        drop(mapping);

        assert!(!is_mapped(middle));
    }

    #[test]
    fn length_beyond_the_address_space_is_an_error() {
        assert_eq!(
            Mapping::anonymous(usize::MAX - 4095).unwrap_err(),
            io::Errno::NOMEM
        );
    }
}
