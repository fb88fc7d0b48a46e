// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where RAM lies in a PC's guest-physical address space.

use crate::GuestAddress;

/// Where RAM below 4 GiB ends at the latest: from here to [`HIGH_MEMORY_START`] is the hole in
/// which 32-bit MMIO, the IOAPIC and the local APICs live.
pub const HOLE_START: GuestAddress = GuestAddress(0xc000_0000);

/// Where RAM goes on above the 32-bit hole.
pub const HIGH_MEMORY_START: GuestAddress = GuestAddress(1 << 32);

/// The RAM ranges, as (start, bytes), of a guest with `size` bytes of memory: from 0 up to the
/// 32-bit MMIO hole, and what is left from 4 GiB on.
///
/// ```
/// use coracle_memory::{GuestAddress, layout};
///
/// assert_eq!(layout(128 << 20), [(GuestAddress(0), 128 << 20)]);
/// assert_eq!(
///     layout(4 << 30),
///     [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 1 << 30)]
/// );
/// ```
#[must_use]
pub fn layout(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(HOLE_START.0);
    let high = size - low;
    [(GuestAddress(0), low), (HIGH_MEMORY_START, high)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing(0, &[])]
    #[case::small(4096, &[(0, 4096)])]
    #[case::up_to_the_hole(3 << 30, &[(0, 3 << 30)])]
    #[case::one_page_above(0xc000_1000, &[(0, 3 << 30), (4 << 30, 4096)])]
    fn ranges_of(#[case] size: u64, #[case] expected: &[(u64, u64)]) {
        let ranges: Vec<_> = layout(size).into_iter().map(|(a, l)| (a.0, l)).collect();

        assert_eq!(ranges, expected);
    }

    proptest! {
        #[test]
        fn sizes_add_up_and_nothing_lies_in_the_hole(size: u64) {
            let ranges = layout(size);

            prop_assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), size);
            for (start, len) in ranges {
                let ends_below = start.0.checked_add(len).is_some_and(|end| end <= HOLE_START.0);
                prop_assert!(ends_below || start >= HIGH_MEMORY_START);
            }
        }
    }
}
