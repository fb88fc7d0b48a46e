// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of a queue, against drivers good and bad, and against virtio-queue's.

use coracle_memory::{AccessError, GuestAddress};
use coracle_virtio::testing::{self, Driver};
use coracle_virtio::{
    Chain, ChainError, DESC_NEXT, Descriptor, MAX_QUEUE_SIZE, Queue, QueueAddresses, QueueError,
    QueueSetupError, RingPart, features,
};
use proptest::prelude::*;
use rstest::rstest;
use virtio_queue::{Queue as TheirQueue, QueueT};

const MEMORY: u64 = 1 << 20;
const SIZE: u16 = 4;

fn driver() -> Driver {
    let memory = testing::memory(MEMORY);
    Driver::new(&memory, GuestAddress(0x1000), 0x8000, SIZE).unwrap()
}

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

#[test]
fn chains_come_out_in_order_and_go_back_in_any() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let first = driver.add(&[b"first"], &[]).unwrap();
    let second = driver.add_indirect(&[b"sec", b"ond"], &[4]).unwrap();
    let (mut one, mut two) = (Chain::new(), Chain::new());

    assert!(queue.pop(&mut one).unwrap());
    assert!(queue.pop(&mut two).unwrap());
    assert!(!queue.pop(&mut Chain::new()).unwrap());
    assert_eq!((one.head(), two.head()), (first, second));
    assert_eq!(one.readable().read_obj(), Ok(*b"first"));
    assert_eq!(two.readable().read_obj(), Ok(*b"second"));
    assert_eq!(queue.in_flight(), 2);

    two.writable().write_all(b"done").unwrap();
    queue.add_used(second, 4).unwrap();
    queue.add_used(first, 0).unwrap();

    let used = driver.used().unwrap().unwrap();
    assert_eq!(
        (used.head, used.data.as_slice()),
        (second.into(), b"done".as_slice())
    );
    assert_eq!(driver.used().unwrap().unwrap().head, u32::from(first));
    assert_eq!(driver.used().unwrap(), None);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn indices_wrap() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let mut chain = Chain::new();

    for round in 0..70_000u32 {
        driver.add(&[], &[4]).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        chain.writable().write_obj(&round).unwrap();
        queue.add_used(chain.head(), 4).unwrap();
        assert_eq!(driver.used().unwrap().unwrap().data, round.to_le_bytes());
    }

    assert!(!queue.pop(&mut chain).unwrap());
}

#[rstest]
#[case::just_too_far(SIZE + 1)]
#[case::backwards(u16::MAX)]
#[case::half_way_round(0x8000)]
fn an_index_too_far_ahead_is_refused_again_and_again(#[case] index: u16) {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_avail_index(index).unwrap();

    let expected = QueueError::AvailableIndex {
        index,
        ours: 0,
        size: SIZE,
    };
    assert_eq!(queue.pop(&mut Chain::new()), Err(expected.clone()));
    assert_eq!(queue.pop(&mut Chain::new()), Err(expected.clone()));
    assert_eq!(queue.enable_kicks(), Err(expected));
}

#[test]
fn a_full_ring_is_no_fault() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    for _ in 0..SIZE {
        driver.add(&[b"x"], &[]).unwrap();
    }
    let mut chain = Chain::new();

    let taken = std::iter::from_fn(|| queue.pop(&mut chain).unwrap().then_some(())).count();

    assert_eq!(taken, usize::from(SIZE));
}

#[test]
fn a_head_in_flight_is_not_taken_twice() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let head = driver.add(&[b"x"], &[]).unwrap();
    driver.publish(head).unwrap();
    let mut chain = Chain::new();
    queue.pop(&mut chain).unwrap();

    assert_eq!(queue.pop(&mut chain), Err(QueueError::InFlight { head }));

    queue.add_used(head, 0).unwrap();
    assert_eq!(queue.pop(&mut chain), Ok(true));
}

#[test]
fn a_chain_is_returned_once() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let head = driver.add(&[b"x"], &[]).unwrap();
    assert_eq!(
        queue.add_used(head, 0),
        Err(QueueError::NotInFlight { head })
    );
    queue.pop(&mut Chain::new()).unwrap();

    assert_eq!(queue.add_used(head, 0), Ok(()));

    assert_eq!(
        queue.add_used(head, 0),
        Err(QueueError::NotInFlight { head })
    );
    assert_eq!(
        queue.add_used(u16::MAX, 0),
        Err(QueueError::NotInFlight { head: u16::MAX })
    );
    driver.used().unwrap().unwrap();
    assert_eq!(driver.used().unwrap(), None);
}

#[test]
fn a_head_outside_the_table_is_refused() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.publish(SIZE).unwrap();

    assert_eq!(
        queue.pop(&mut Chain::new()),
        Err(QueueError::Chain {
            head: SIZE,
            source: ChainError::Head {
                head: SIZE,
                table_len: SIZE
            },
        })
    );
}

#[test]
fn a_broken_chain_is_named_and_not_taken() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let looped = Descriptor {
        address: 0,
        len: 1,
        flags: DESC_NEXT,
        next: 2,
    };
    driver.put(2, looped).unwrap();
    driver.publish(2).unwrap();

    let error = queue.pop(&mut Chain::new()).unwrap_err();

    assert_eq!(error.to_string(), "the chain at descriptor 2 is broken");
    assert_eq!(queue.in_flight(), 0);
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("loop")
    );
}

#[test]
fn indirect_tables_need_their_feature() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING_EVENT_IDX).unwrap();
    driver.add_indirect(&[b"x"], &[]).unwrap();

    assert!(matches!(
        queue.pop(&mut Chain::new()),
        Err(QueueError::Chain {
            source: ChainError::IndirectNotNegotiated { .. },
            ..
        })
    ));
}

/// Takes and returns `count` chains.
fn pass(driver: &mut Driver, queue: &mut Queue, count: u16) {
    let mut chain = Chain::new();
    for _ in 0..count {
        driver.add(&[b"x"], &[]).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        queue.add_used(chain.head(), 0).unwrap();
        driver.used().unwrap().unwrap();
    }
}

#[rstest]
#[case::wanted(0, true)]
#[case::not_wanted(1, false)]
fn flags_decide_about_interrupts_without_event_idx(#[case] flags: u16, #[case] wanted: bool) {
    let mut driver = driver();
    let mut queue = driver.queue(0).unwrap();
    driver.set_avail_flags(flags).unwrap();
    assert!(!queue.needs_interrupt());

    pass(&mut driver, &mut queue, 1);

    assert_eq!(queue.needs_interrupt(), wanted);
    assert!(!queue.needs_interrupt());
}

#[rstest]
#[case::next_one(0, 1, true)]
#[case::one_inside_the_batch(2, 5, true)]
#[case::last_of_the_batch(4, 5, true)]
#[case::one_after_the_batch(5, 5, false)]
#[case::one_long_past(u16::MAX, 5, false)]
#[case::more_than_indices_can_tell(5, 0xffff, true)]
fn the_event_index_decides_about_interrupts(
    #[case] event: u16,
    #[case] returned: u16,
    #[case] wanted: bool,
) {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_used_event(event).unwrap();

    pass(&mut driver, &mut queue, returned);

    assert_eq!(queue.needs_interrupt(), wanted);
    assert!(!queue.needs_interrupt());
}

#[test]
fn a_lapped_event_index_gives_an_interrupt() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_used_event(9).unwrap();

    pass(&mut driver, &mut queue, 0x8000);
    pass(&mut driver, &mut queue, 0x8000);

    assert!(queue.needs_interrupt());
}

#[test]
fn kicks_are_asked_for_by_flag_without_event_idx() {
    let driver = driver();
    let mut queue = driver.queue(0).unwrap();

    queue.disable_kicks().unwrap();
    assert_eq!(driver.used_flags(), Ok(1));

    assert_eq!(queue.enable_kicks(), Ok(false));
    assert_eq!(driver.used_flags(), Ok(0));
}

#[test]
fn kicks_are_asked_for_by_index_with_event_idx() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    pass(&mut driver, &mut queue, 3);

    queue.disable_kicks().unwrap();
    assert_eq!(driver.avail_event(), Ok(0));
    assert_eq!(queue.enable_kicks(), Ok(false));

    assert_eq!(driver.avail_event(), Ok(3));
    assert_eq!(driver.used_flags(), Ok(0));
}

#[rstest]
#[case::by_flag(0)]
#[case::by_index(features::RING)]
fn a_chain_added_before_kicks_are_on_is_seen(#[case] features: u64) {
    let mut driver = driver();
    let mut queue = driver.queue(features).unwrap();
    let mut chain = Chain::new();
    driver.add(&[b"x"], &[]).unwrap();
    driver.add(&[b"y"], &[]).unwrap();

    assert_eq!(queue.enable_kicks(), Ok(true));
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(queue.enable_kicks(), Ok(true));
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(queue.enable_kicks(), Ok(false));
}

/// What a driver and its device do in turn.
#[derive(Clone, Debug)]
enum Op {
    Add {
        readable: u8,
        writable: u8,
        indirect: bool,
    },
    Take,
    Return {
        which: usize,
        len: u32,
    },
    AskForInterrupt,
    EnableKicks,
    WantInterruptAfter {
        ahead: u16,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3u8, 0..3u8, any::<bool>())
            .prop_map(|(readable, writable, indirect)| Op::Add { readable, writable, indirect }),
        4 => Just(Op::Take),
        4 => (any::<usize>(), 0..100u32).prop_map(|(which, len)| Op::Return { which, len }),
        2 => Just(Op::AskForInterrupt),
        2 => Just(Op::EnableKicks),
        2 => (0..4u16).prop_map(|ahead| Op::WantInterruptAfter { ahead }),
    ]
}

/// Our queue and virtio-queue's, each in a memory of its own with a driver of its own.
struct Pair {
    drivers: [Driver; 2],
    ours: Queue,
    theirs: TheirQueue,
    in_flight: Vec<u16>,
    returned: u16,
}

/// What an operation shows, on our side and on theirs.
type Outcome = (Option<u16>, Option<bool>, usize, usize);

impl Pair {
    fn new() -> Self {
        let drivers = [driver(), driver()];
        let addresses = drivers[1].addresses();
        let mut theirs = TheirQueue::new(SIZE).unwrap();
        theirs
            .try_set_desc_table_address(addresses.desc_table.into())
            .unwrap();
        theirs
            .try_set_avail_ring_address(addresses.avail_ring.into())
            .unwrap();
        theirs
            .try_set_used_ring_address(addresses.used_ring.into())
            .unwrap();
        theirs.set_event_idx(true);
        theirs.set_ready(true);
        Self {
            ours: drivers[0].queue(features::RING).unwrap(),
            drivers,
            theirs,
            in_flight: Vec::new(),
            returned: 0,
        }
    }

    fn run(&mut self, op: &Op) -> [Outcome; 2] {
        let memory = self.drivers[1].memory().clone();
        let memory = memory.as_vm_memory();
        match *op {
            Op::Add {
                readable,
                writable,
                indirect,
            } => {
                let readable = vec![b"data".as_slice(); readable.into()];
                let writable = vec![16; writable.into()];
                self.drivers.each_mut().map(|driver| {
                    let head = if indirect {
                        driver.add_indirect(&readable, &writable)
                    } else {
                        driver.add(&readable, &writable)
                    };
                    (head.ok(), None, 0, 0)
                })
            }
            Op::Take => {
                let mut chain = Chain::new();
                let ours = self.ours.pop(&mut chain).unwrap().then(|| {
                    (
                        Some(chain.head()),
                        None,
                        chain.readable_len() as usize,
                        chain.writable_len() as usize,
                    )
                });
                let theirs = self.theirs.pop_descriptor_chain(memory).map(|chain| {
                    let bytes = |writable| -> usize {
                        chain
                            .clone()
                            .filter(|entry| entry.is_write_only() == writable)
                            .map(|entry| entry.len() as usize)
                            .sum()
                    };
                    (Some(chain.head_index()), None, bytes(false), bytes(true))
                });
                self.in_flight.extend(ours.and_then(|(head, ..)| head));
                [ours, theirs].map(Option::unwrap_or_default)
            }
            Op::Return { which, len } if !self.in_flight.is_empty() => {
                let head = self.in_flight.remove(which % self.in_flight.len());
                self.ours.add_used(head, len).unwrap();
                self.theirs.add_used(memory, head, len).unwrap();
                self.returned = self.returned.wrapping_add(1);
                self.drivers.each_mut().map(|driver| {
                    let used = driver.used().unwrap().unwrap();
                    (
                        u16::try_from(used.head).ok(),
                        None,
                        used.len as usize,
                        used.data.len(),
                    )
                })
            }
            Op::Return { .. } => Default::default(),
            Op::AskForInterrupt => {
                let ours = self.ours.needs_interrupt();
                let theirs = self.theirs.needs_notification(memory).unwrap();
                [ours, theirs].map(|wanted| (None, Some(wanted), 0, 0))
            }
            Op::EnableKicks => {
                let ours = self.ours.enable_kicks().unwrap();
                let theirs = self.theirs.enable_notification(memory).unwrap();
                [(ours, 0), (theirs, 1)].map(|(more, side)| {
                    let event = self.drivers[side].avail_event().unwrap();
                    (Some(event), Some(more), 0, 0)
                })
            }
            Op::WantInterruptAfter { ahead } => {
                for driver in &mut self.drivers {
                    driver
                        .set_used_event(self.returned.wrapping_add(ahead))
                        .unwrap();
                }
                Default::default()
            }
        }
    }
}

proptest! {
    #[test]
    fn a_well_behaved_driver_sees_no_difference_to_virtio_queue(
        ops in prop::collection::vec(any_op(), 1..60),
    ) {
        let mut pair = Pair::new();

        for op in &ops {
            let [ours, theirs] = pair.run(op);

            prop_assert_eq!(ours, theirs, "{:?}", op);
        }
    }
}
