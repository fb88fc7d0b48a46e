// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `walk` against a naive model, and against virtio-queue.

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use proptest::prelude::*;
use virtio_queue::{Queue as TheirQueue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use crate::{END, INDIRECT, PAGE, SIZE, TABLE, memory, store};

const INDIRECT_LEN: usize = 12;
/// Where an available ring with one element is, for virtio-queue.
const AVAIL: GuestAddress = GuestAddress(0xf00);
const USED: GuestAddress = GuestAddress(0xf80);

/// A buffer as a model sees it: address, length, whether it is writable.
type Buffer = (u64, u32, bool);

/// What a chain is, written down with no regard for speed: the path through the tables first,
/// all rules afterwards. `None` for a broken one.
fn model(memory: &GuestMemory, head: u16, indirect: bool) -> Option<Vec<Buffer>> {
    let mut path = Vec::new();
    let (mut table, mut table_len, mut index) = (TABLE.0, u64::from(SIZE), u64::from(head));
    let mut nested = false;
    loop {
        (index < table_len && path.len() <= 64).then_some(())?;
        let at = table.checked_add(16 * index)?;
        let entry: Descriptor = memory.read_obj(GuestAddress(at)).ok()?;
        if entry.flags & DESC_INDIRECT != 0 {
            let allowed = indirect && !nested && entry.flags & DESC_NEXT == 0;
            let whole = entry.len > 0 && entry.len.is_multiple_of(16);
            (allowed && whole).then_some(())?;
            memory
                .check(GuestAddress(entry.address), entry.len as usize)
                .ok()?;
            (table, table_len, index) = (entry.address, u64::from(entry.len) / 16, 0);
            nested = true;
            continue;
        }
        path.push((entry.address, entry.len, entry.flags & DESC_WRITE != 0));
        if entry.flags & DESC_NEXT == 0 {
            break;
        }
        index = entry.next.into();
    }
    let fits = path.len() <= usize::from(SIZE);
    let total: u64 = path.iter().map(|(_, len, _)| u64::from(*len)).sum();
    let sorted = path.is_sorted_by_key(|(_, _, writable)| *writable);
    let filled = path.iter().all(|(address, len, _)| {
        *len > 0 && memory.check(GuestAddress(*address), *len as usize).is_ok()
    });
    (fits && total <= u64::from(u32::MAX) && sorted && filled).then_some(path)
}

/// The slices of the model's buffers of one kind, as addresses and lengths on the host.
fn host_ranges(memory: &GuestMemory, buffers: &[Buffer], writable: bool) -> Vec<(usize, usize)> {
    buffers
        .iter()
        .filter(|(_, _, w)| *w == writable)
        .flat_map(|(address, len, _)| {
            memory
                .slices(GuestAddress(*address), *len as usize)
                .unwrap()
        })
        .map(|slice| (slice.as_ptr().addr(), slice.len()))
        .collect()
}

fn ranges_of(iovecs: &[libc::iovec]) -> Vec<(usize, usize)> {
    iovecs
        .iter()
        .map(|range| (range.iov_base.addr(), range.iov_len))
        .collect()
}

/// The chain as virtio-queue walks it.
fn their_buffers(memory: &GuestMemory, head: u16) -> Vec<Buffer> {
    let vm_memory = memory.as_vm_memory();
    let ring: [u16; 3] = [0, 1, head];
    for (value, at) in ring.into_iter().zip((AVAIL.0..).step_by(2)) {
        vm_memory
            .write_obj(value, vm_memory::GuestAddress(at))
            .unwrap();
    }
    let mut queue = TheirQueue::new(SIZE).unwrap();
    queue.try_set_desc_table_address(TABLE.into()).unwrap();
    queue.try_set_avail_ring_address(AVAIL.into()).unwrap();
    queue.try_set_used_ring_address(USED.into()).unwrap();
    queue.set_ready(true);
    let mut chains = queue.iter(vm_memory).unwrap();
    let chain = chains.next().unwrap();
    assert_eq!(chain.head_index(), head);
    chain
        .map(|entry| (entry.addr().0, entry.len(), entry.is_write_only()))
        .collect()
}

/// Descriptors that are right more often than not.
fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        20 => PAGE..6 * PAGE,
        3 => 4 * PAGE - 20..4 * PAGE,
        1 => 6 * PAGE - 20..8 * PAGE,
        6 => Just(INDIRECT),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        20 => 1..40u32,
        6 => (1..=INDIRECT_LEN as u32).prop_map(|entries| 16 * entries),
        1 => Just(0),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        8 => Just(DESC_NEXT),
        3 => Just(DESC_NEXT | DESC_WRITE),
        3 => Just(DESC_WRITE),
        1 => Just(END),
        2 => Just(DESC_INDIRECT),
        1 => 0..8u16,
    ];
    let next = prop_oneof![20 => 0..SIZE, 1 => 0..SIZE + 4];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        // A table is of no use where none is; half of the indirect descriptors are at random.
        address: if flags & DESC_INDIRECT != 0 && len.is_multiple_of(16) {
            INDIRECT
        } else {
            address
        },
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn walk_agrees_with_the_model_and_with_virtio_queue(
        table in prop::collection::vec(any_descriptor(), usize::from(SIZE)),
        entries in prop::collection::vec(any_descriptor(), INDIRECT_LEN),
        head in 0..SIZE,
        indirect: bool,
    ) {
        let memory = memory();
        store(&memory, TABLE.0, &table);
        store(&memory, INDIRECT, &entries);
        let mut chain = Chain::new();

        let walked = walk(&memory, TABLE, SIZE, head, indirect, &mut chain);

        let expected = model(&memory, head, indirect);
        prop_assert_eq!(walked.is_ok(), expected.is_some(), "{:?}", walked);
        let expected = expected.unwrap_or_default();
        prop_assert_eq!(
            ranges_of(chain.readable().iovecs(usize::MAX)),
            host_ranges(&memory, &expected, false)
        );
        prop_assert_eq!(
            ranges_of(chain.writable().iovecs(usize::MAX)),
            host_ranges(&memory, &expected, true)
        );
        let theirs = walked.map(|()| their_buffers(&memory, head));
        prop_assert_eq!(theirs.unwrap_or_default(), expected);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_walked_to_an_end(
        bytes in prop::collection::vec(any::<u8>(), 2 * PAGE as usize),
        head: u16,
    ) {
        let memory = memory();
        memory.write(GuestAddress(0), &bytes).unwrap();
        let mut chain = Chain::new();

        let walked = walk(&memory, TABLE, SIZE, head, true, &mut chain);

        prop_assert_eq!(walked.is_ok(), model(&memory, head, true).is_some());
    }
}
