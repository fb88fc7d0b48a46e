// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The initial RAM disk: at the top of the memory region that the kernel is in, below 4 GiB, out of the kernel's way while
//! it unpacks.

use std::fs::File;

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use thiserror::Error;

use crate::image::{Image, ReadError};
use crate::layout::HIGH_RAM;

const PAGE: u64 = 4096;
/// Linux keeps 32 bits of the address and the size that the module list gives (`ramdisk_image` and `ramdisk_size` of its
/// `struct setup_header`).
const ADDRESS_LIMIT: u64 = 1 << 32;

/// Why an initrd cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The file cannot be read.
    #[error("the initrd cannot be read")]
    Read(#[from] ReadError),
    /// Nothing in it.
    #[error("the initrd is empty")]
    Empty,
    /// More than guest memory has left.
    #[error("the initrd has {size:#x} bytes, but only {free:#x} are free behind the kernel")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// What is free, in bytes.
        free: u64,
    },
    /// The place for it is not to be written.
    #[error("the initrd cannot be placed at {address:#x}")]
    Place {
        /// The address.
        address: u64,
        /// The reason.
        source: AccessError,
    },
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initrd {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Loads the initrd in `file` into `memory`, above the kernel that ends at `kernel_end`.
pub(crate) fn load(
    memory: &GuestMemory,
    file: &File,
    kernel_end: u64,
) -> Result<Initrd, InitrdError> {
    let image = Image::new(file)?;
    let size = image.len();
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let free = free_behind(memory, kernel_end);
    let address = place(&free, size).ok_or(InitrdError::TooLarge {
        size,
        free: free.end - free.start,
    })?;
    // A size that fits in guest memory is a usize.
    let slice = memory
        .slice(
            GuestAddress(address),
            usize::try_from(size).unwrap_or(usize::MAX),
        )
        .map_err(|source| InitrdError::Place { address, source })?;
    image.read_to_guest(0, slice)?;
    Ok(Initrd { address, size })
}

/// What is left behind the kernel of the region that the kernel ends in, as far as Linux can address it.
fn free_behind(memory: &GuestMemory, kernel_end: u64) -> std::ops::Range<u64> {
    let end = memory
        .regions()
        .iter()
        .map(|region| {
            (
                region.start().0,
                region.start().0.saturating_add(region.len()),
            )
        })
        .find(|(start, end)| (*start..=*end).contains(&kernel_end))
        .map_or(kernel_end, |(_, end)| end.min(ADDRESS_LIMIT));
    let start = kernel_end.max(HIGH_RAM);
    start..end.max(start)
}

/// The highest page at which `size` bytes fit in `free`.
fn place(free: &std::ops::Range<u64>, size: u64) -> Option<u64> {
    let address = free.end.checked_sub(size)? / PAGE * PAGE;
    (address >= free.start).then_some(address)
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use rstest::rstest;

    use super::*;
    use crate::testing::file;

    const MIB: u64 = 1 << 20;

    #[rstest]
    #[case::one_byte(1, Some(0x40_0000 - 0x1000))]
    #[case::one_page(0x1000, Some(0x40_0000 - 0x1000))]
    #[case::all(0x20_0000, Some(0x20_0000))]
    #[case::one_byte_too_many(0x20_0001, None)]
    #[case::more_than_addresses(u64::MAX, None)]
    fn initrd_is_placed_at_the_highest_page(#[case] size: u64, #[case] expected: Option<u64>) {
        let address = place(&(0x20_0000..0x40_0000), size);

        assert_eq!(address, expected);
    }

    #[test]
    fn initrd_is_read_whole() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();
        let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();

        let initrd = load(&memory, &file(&content), 2 * MIB).unwrap();

        let mut found = vec![0; content.len()];
        memory
            .read(GuestAddress(initrd.address), &mut found)
            .unwrap();
        assert_eq!((initrd.size, found), (10_000, content));
    }

    // What it is is the kernel's business, which tells archives and their compressions apart itself.
    #[rstest]
    #[case::archive(b"070701\0")]
    #[case::gzip(b"\x1f\x8b\x08\0\0\0\0\0")]
    #[case::zstd(b"\x28\xb5\x2f\xfd\0\0\0")]
    #[case::anything(b"\0")]
    fn initrd_of_any_format_is_loaded_as_it_is(#[case] content: &[u8]) {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();

        let initrd = load(&memory, &file(content), 2 * MIB).unwrap();

        let mut found = vec![0xff; content.len()];
        memory
            .read(GuestAddress(initrd.address), &mut found)
            .unwrap();
        assert_eq!((initrd.size, &found[..]), (content.len() as u64, content));
    }

    #[test]
    fn initrd_larger_than_what_is_free_is_refused() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();

        let error = load(&memory, &file(&[0; 4097]), 2 * MIB - 4096).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the initrd has 0x1001 bytes, but only 0x1000 are free behind the kernel"
        );
    }

    #[test]
    fn initrd_may_reach_from_the_kernel_to_the_end_of_memory() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();
        let content: Vec<u8> = (0..=250).cycle().take(2 << 20).collect();

        let initrd = load(&memory, &file(&content), 2 * MIB).unwrap();

        let mut found = vec![0; content.len()];
        memory.read(GuestAddress(2 * MIB), &mut found).unwrap();
        assert_eq!((initrd.address, initrd.size), (2 * MIB, 2 * MIB));
        assert!(found == content);
    }

    #[rstest]
    #[case::one_byte_more_than_memory(4 * MIB + 1)]
    #[case::the_largest_file(i64::MAX.cast_unsigned())]
    fn initrd_larger_than_memory_is_refused_before_it_is_read(#[case] size: u64) {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();
        // A memory file may be of any size and takes no room.
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"initrd".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the kernel has just made this descriptor for us.
        let initrd = unsafe { File::from_raw_fd(fd) };
        initrd.set_len(size).unwrap();

        let error = load(&memory, &initrd, 2 * MIB).unwrap_err();

        assert_eq!(
            error.to_string(),
            format!("the initrd has {size:#x} bytes, but only 0x200000 are free behind the kernel")
        );
    }

    #[test]
    fn initrd_is_placed_where_linux_can_name_it() {
        let memory = GuestMemory::anonymous(&[(GuestAddress(0), 6 << 30)]).unwrap();

        let initrd = load(&memory, &file(b"initrd"), 2 * MIB).unwrap();

        assert_eq!(initrd.address, (4 << 30) - PAGE);
    }

    #[rstest]
    #[case::at_the_end_of_memory(4 * MIB)]
    #[case::behind_the_end_of_memory(5 * MIB)]
    #[case::at_the_last_address(u64::MAX)]
    fn kernel_that_leaves_no_room_is_told(#[case] kernel_end: u64) {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();

        let error = load(&memory, &file(&[1]), kernel_end).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the initrd has 0x1 bytes, but only 0x0 are free behind the kernel"
        );
    }

    #[test]
    fn directory_is_no_initrd() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();

        let error = load(&memory, &File::open("/").unwrap(), MIB).unwrap_err();

        assert!(matches!(error, InitrdError::Read(ReadError::NotRegular)));
    }

    #[test]
    fn empty_initrd_is_refused() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();

        let error = load(&memory, &file(&[]), MIB).unwrap_err();

        assert!(matches!(error, InitrdError::Empty));
    }
}
