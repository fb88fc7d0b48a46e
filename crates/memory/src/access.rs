// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with a range of guest memory.

use thiserror::Error;

use crate::GuestAddress;

/// Why a range of guest memory cannot be reached. The guest gave the range, so this is an
/// ordinary outcome and never a bug of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The range wraps around the end of the 64-bit address space.
    #[error("{len} bytes at guest address {address} reach past the 64-bit address space")]
    Overflow {
        /// Where the range starts.
        address: GuestAddress,
        /// Its length in bytes.
        len: usize,
    },
    /// Part of the range is no memory.
    #[error("{len} bytes at guest address {address} are no memory from {hole} on")]
    Unmapped {
        /// Where the range starts.
        address: GuestAddress,
        /// Its length in bytes.
        len: usize,
        /// The first address of the range that is no memory.
        hole: GuestAddress,
    },
    /// The range lies in memory, but in several regions, and one was asked for.
    #[error("{len} bytes at guest address {address} reach past their region's end at {end}")]
    SpansRegions {
        /// Where the range starts.
        address: GuestAddress,
        /// Its length in bytes.
        len: usize,
        /// The end of the region that `address` lies in.
        end: GuestAddress,
    },
    /// An atomic access at an address that is not a multiple of its size.
    #[error("an atomic access of {size} bytes at offset {offset:#x} of its region is not aligned")]
    Misaligned {
        /// Offset in bytes into the slice or region.
        offset: u64,
        /// Size of the access in bytes.
        size: usize,
    },
    /// An access beyond the end of a slice.
    #[error("{len} bytes at offset {offset} are not inside a slice of {slice_len} bytes")]
    OutsideSlice {
        /// Offset in bytes into the slice.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
        /// Length of the slice in bytes.
        slice_len: usize,
    },
}
