// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same driver sees the same of our queue as of virtio-queue's.

use coracle_virtio::testing::Driver;
use coracle_virtio::{Chain, Queue, features};
use proptest::prelude::*;
use virtio_queue::{Queue as TheirQueue, QueueT};

use crate::{SIZE, driver};

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
