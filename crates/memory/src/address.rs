// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address type: guest-physical, never to be taken for a host pointer or a length.

use std::fmt;

/// A guest-physical address, in bytes.
///
/// Printed in hexadecimal, with `0x`, by `Display` and `Debug` alike. There is no unchecked
/// arithmetic on it: most addresses are the guest's word, and a sum that wraps is an attack.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// The address `offset` bytes further, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, offset: u64) -> Option<Self> {
        match self.0.checked_add(offset) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// How many bytes this address lies beyond `base`, or `None` if it lies before it.
    #[must_use]
    pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }

    /// Whether the address is a multiple of `alignment` bytes (a power of two).
    #[must_use]
    pub const fn is_aligned_to(self, alignment: u64) -> bool {
        self.0 & alignment.wrapping_sub(1) == 0
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestAddress({:#x})", self.0)
    }
}

impl From<GuestAddress> for vm_memory::GuestAddress {
    fn from(address: GuestAddress) -> Self {
        Self(address.0)
    }
}

impl From<vm_memory::GuestAddress> for GuestAddress {
    fn from(address: vm_memory::GuestAddress) -> Self {
        Self(address.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_past_the_address_space_is_none() {
        assert_eq!(GuestAddress(u64::MAX).checked_add(1), None);
        assert_eq!(
            GuestAddress(1).checked_add(u64::MAX - 1),
            Some(GuestAddress(u64::MAX))
        );
    }

    #[test]
    fn offset_from_a_later_base_is_none() {
        assert_eq!(GuestAddress(7).checked_offset_from(GuestAddress(8)), None);
        assert_eq!(
            GuestAddress(9).checked_offset_from(GuestAddress(8)),
            Some(1)
        );
    }

    #[test]
    fn prints_in_hexadecimal() {
        assert_eq!(GuestAddress(0xc000_0000).to_string(), "0xc0000000");
        assert_eq!(format!("{:?}", GuestAddress(16)), "GuestAddress(0x10)");
    }

    #[test]
    fn alignment_is_tested_against_the_whole_address() {
        assert!(GuestAddress(0x20).is_aligned_to(16));
        assert!(!GuestAddress(0x28).is_aligned_to(16));
        assert!(GuestAddress(3).is_aligned_to(1));
    }
}
