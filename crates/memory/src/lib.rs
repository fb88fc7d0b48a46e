// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod access;
mod address;
mod layout;
mod mapping;
mod memory;
mod owned;
mod region;
mod scatter;
mod slice;

pub use access::AccessError;
pub use address::GuestAddress;
pub use layout::{HIGH_MEMORY_START, HOLE_START, layout};
pub use mapping::{HUGE_PAGE_SIZE, PAGE_SIZE};
pub use memory::{GuestMemory, MemoryError, VmMemory};
pub use owned::OwnedSlice;
pub use region::Region;
pub use scatter::{IoVecs, ScatterList};
pub use slice::{GuestSlice, Slices};
