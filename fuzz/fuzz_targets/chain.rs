// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains of any content: walked to an end, with every buffer inside guest memory, and
//! rings of any content drained in bounded time.
#![no_main]

use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, Descriptor, Queue, QueueAddresses, features, walk};
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 0x1000;
const SIZE: u16 = 8;
const TABLE: GuestAddress = GuestAddress(0);
const AVAIL: GuestAddress = GuestAddress(0x100);
const USED: GuestAddress = GuestAddress(0x200);
const INDIRECT: u64 = 0x800;

#[derive(Arbitrary, Debug)]
struct Input {
    head: u16,
    indirect: bool,
    event_idx: bool,
    table: [RawDescriptor; SIZE as usize],
    entries: [RawDescriptor; 12],
    avail_index: u16,
    avail: [u16; SIZE as usize],
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct RawDescriptor {
    place: Place,
    len: u32,
    flags: u16,
    next: u16,
}

/// Addresses that are worth a try, and any other.
#[derive(Arbitrary, Debug)]
enum Place {
    Memory(u16),
    Indirect { entries: u8 },
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Pop,
    Return { head: u16, len: u32 },
    Interrupt,
    EnableKicks,
    DisableKicks,
    MoveIndex(u16),
}

impl RawDescriptor {
    fn to_descriptor(&self) -> Descriptor {
        let (address, len) = match self.place {
            Place::Memory(address) => (address.into(), self.len % 0x2000),
            Place::Indirect { entries } => (INDIRECT, 16 * u32::from(entries)),
            Place::Any(address) => (address, self.len),
        };
        Descriptor {
            address,
            len,
            flags: self.flags & 7,
            next: self.next % (SIZE + 1),
        }
    }
}

fn store(memory: &GuestMemory, at: u64, table: &[RawDescriptor]) {
    for (entry, at) in table.iter().zip((at..).step_by(16)) {
        memory
            .write_obj(GuestAddress(at), &entry.to_descriptor())
            .expect("tables are in memory");
    }
}

/// Each buffer is inside the region of host memory that some range of the guest's is in.
fn check(memory: &GuestMemory, chain: &Chain) {
    let (mut reader, mut writer) = (chain.readable(), chain.writable());
    let mut total = 0;
    for range in reader
        .iovecs(usize::MAX)
        .iter()
        .chain(writer.iovecs(usize::MAX))
    {
        let start = range.iov_base.addr();
        assert!(memory.regions().iter().any(|region| {
            let base = region.host_address().addr();
            start >= base && start + range.iov_len <= base + region.len() as usize
        }));
        assert!(range.iov_len > 0);
        total += range.iov_len;
    }
    assert_eq!(
        total,
        chain.readable_len() as usize + chain.writable_len() as usize
    );

    let mut bytes = [0; 64];
    while reader.read(&mut bytes) > 0 {}
    while writer.write(&bytes) > 0 {}
    assert_eq!(
        (reader.remaining(), writer.written()),
        (0, chain.writable_len())
    );
}

fuzz_target!(|input: Input| {
    let memory = GuestMemory::anonymous(&[
        (GuestAddress(0), 4 * PAGE),
        (GuestAddress(4 * PAGE), 2 * PAGE),
        (GuestAddress(7 * PAGE), PAGE),
    ])
    .expect("whole pages");
    store(&memory, TABLE.0, &input.table);
    store(&memory, INDIRECT, &input.entries);

    // The check writes to the buffers, and may so write to the tables: the rest is a ring of
    // any content indeed.
    let mut chain = Chain::new();
    if walk(&memory, TABLE, SIZE, input.head, input.indirect, &mut chain).is_ok() {
        check(&memory, &chain);
    }

    let in_memory = "the rings are in memory";
    memory
        .store_u16(
            GuestAddress(AVAIL.0 + 2),
            input.avail_index,
            Ordering::Relaxed,
        )
        .expect(in_memory);
    memory
        .write_obj(GuestAddress(AVAIL.0 + 4), &input.avail)
        .expect(in_memory);
    let addresses = QueueAddresses {
        size: SIZE,
        desc_table: TABLE,
        avail_ring: AVAIL,
        used_ring: USED,
    };
    let mut features = 0;
    if input.indirect {
        features |= features::RING_INDIRECT_DESC;
    }
    if input.event_idx {
        features |= features::RING_EVENT_IDX;
    }
    let mut queue = Queue::new(memory.clone(), addresses, features).expect(in_memory);
    for step in input.steps {
        match step {
            Step::Pop => {
                if let Ok(true) = queue.pop(&mut chain) {
                    check(&memory, &chain);
                }
            }
            Step::Return { head, len } => {
                let _ = queue.add_used(head % SIZE, len);
            }
            Step::Interrupt => {
                queue.needs_interrupt();
            }
            Step::EnableKicks => {
                let _ = queue.enable_kicks();
            }
            Step::DisableKicks => queue.disable_kicks().expect(in_memory),
            Step::MoveIndex(index) => {
                memory
                    .store_u16(GuestAddress(AVAIL.0 + 2), index, Ordering::Relaxed)
                    .expect(in_memory);
            }
        }
        assert!(queue.in_flight() <= SIZE);
    }
});
