// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a queue may be.

use coracle_memory::{AccessError, GuestAddress};
use coracle_virtio::testing;
use coracle_virtio::{MAX_QUEUE_SIZE, Queue, QueueAddresses, QueueSetupError, RingPart, features};
use rstest::rstest;

use crate::MEMORY;

fn addresses(size: u16, desc_table: u64, avail_ring: u64, used_ring: u64) -> QueueAddresses {
    QueueAddresses {
        size,
        desc_table: GuestAddress(desc_table),
        avail_ring: GuestAddress(avail_ring),
        used_ring: GuestAddress(used_ring),
    }
}

#[rstest]
#[case::smallest(addresses(1, 0, 0x10, 0x20))]
#[case::largest(addresses(MAX_QUEUE_SIZE, 0, 0x80000, 0xb0000))]
#[case::parts_at_the_end_of_memory(addresses(4, MEMORY - 64, MEMORY - 14, MEMORY - 40))]
fn good_addresses_are_accepted(#[case] addresses: QueueAddresses) {
    let queue = Queue::new(testing::memory(MEMORY), addresses, features::RING).unwrap();

    assert_eq!(queue.size(), addresses.size);
    assert_eq!(queue.desc_table(), addresses.desc_table);
    assert_eq!(queue.avail_ring(), addresses.avail_ring);
    assert_eq!(queue.used_ring(), addresses.used_ring);
}

#[rstest]
#[case::no_size(addresses(0, 0, 0x100, 0x200), QueueSetupError::Size(0))]
#[case::no_power_of_two(addresses(6, 0, 0x100, 0x200), QueueSetupError::Size(6))]
#[case::too_large(addresses(0xffff, 0, 0x100, 0x200), QueueSetupError::Size(0xffff))]
#[case::table(
    addresses(4, 8, 0x100, 0x200),
    QueueSetupError::Misaligned {
        part: RingPart::DescriptorTable, address: GuestAddress(8), alignment: 16,
    }
)]
#[case::avail(
    addresses(4, 0, 0x101, 0x200),
    QueueSetupError::Misaligned {
        part: RingPart::AvailableRing, address: GuestAddress(0x101), alignment: 2,
    }
)]
#[case::used(
    addresses(4, 0, 0x100, 0x202),
    QueueSetupError::Misaligned {
        part: RingPart::UsedRing, address: GuestAddress(0x202), alignment: 4,
    }
)]
fn bad_size_or_alignment_is_refused(
    #[case] addresses: QueueAddresses,
    #[case] expected: QueueSetupError,
) {
    let error = Queue::new(testing::memory(MEMORY), addresses, 0).unwrap_err();

    assert_eq!(error, expected);
}

/// Each part starts inside memory, and its last byte is outside.
#[rstest]
#[case::table(addresses(4, MEMORY - 48, 0, 0), RingPart::DescriptorTable)]
#[case::avail(addresses(4, 0, MEMORY - 12, 0), RingPart::AvailableRing)]
#[case::used(addresses(4, 0, 0, MEMORY - 36), RingPart::UsedRing)]
#[case::used_at_the_last_address(addresses(4, 0, 0, u64::MAX - 3), RingPart::UsedRing)]
fn a_part_that_reaches_out_of_memory_is_refused(
    #[case] addresses: QueueAddresses,
    #[case] expected: RingPart,
) {
    let error = Queue::new(testing::memory(MEMORY), addresses, 0).unwrap_err();

    assert!(
        matches!(&error, QueueSetupError::Memory { part, source, .. } if *part == expected
            && matches!(source, AccessError::Unmapped { .. } | AccessError::Overflow { .. })),
        "{error:?}"
    );
}
