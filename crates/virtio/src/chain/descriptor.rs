// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor as it lies in guest memory.

use coracle_memory::GuestAddress;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Flag: the chain goes on at [`Descriptor::next`].
pub const DESC_NEXT: u16 = 1;
/// Flag: the device writes the buffer; without it, it reads.
pub const DESC_WRITE: u16 = 1 << 1;
/// Flag: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 1 << 2;

/// A descriptor of a split virtqueue (virtio 1.3, section 2.7.5): one contiguous buffer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`DESC_NEXT`], [`DESC_WRITE`] and [`DESC_INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor of the chain, if the flags say that there is one.
    pub next: u16,
}

impl Descriptor {
    /// Size in bytes, in a descriptor table.
    pub(crate) const SIZE: usize = size_of::<Self>();

    pub(crate) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) const fn start(&self) -> GuestAddress {
        GuestAddress(self.address)
    }
}
