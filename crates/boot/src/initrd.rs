// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The initial RAM disk: at the top of the memory region that the kernel is in, out of the kernel's way while it unpacks.

use std::fs::File;

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use thiserror::Error;

use crate::image::{Image, ReadError};
use crate::layout::HIGH_RAM;

const PAGE: u64 = 4096;

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

/// What is left behind the kernel of the region that the kernel ends in.
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
        .map_or(kernel_end, |(_, end)| end);
    kernel_end.max(HIGH_RAM)..end.max(kernel_end.max(HIGH_RAM))
}

/// The highest page at which `size` bytes fit in `free`.
fn place(free: &std::ops::Range<u64>, size: u64) -> Option<u64> {
    let address = free.end.checked_sub(size)? / PAGE * PAGE;
    (address >= free.start).then_some(address)
}

#[cfg(test)]
mod tests {
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
    fn empty_initrd_is_refused() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();

        let error = load(&memory, &file(&[]), MIB).unwrap_err();

        assert!(matches!(error, InitrdError::Empty));
    }
}
