// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Walking chains: each fault by its name, and two laws: `walk` agrees with a naive model on any
//! table, and with virtio-queue on every table that it accepts.

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, ChainError, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use proptest::prelude::*;
use rstest::rstest;
use virtio_queue::{Queue as TheirQueue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

const PAGE: u64 = 0x1000;

/// Two adjacent regions, a hole of a page, a third region.
const RANGES: [(GuestAddress, u64); 3] = [
    (GuestAddress(0), 4 * PAGE),
    (GuestAddress(4 * PAGE), 2 * PAGE),
    (GuestAddress(7 * PAGE), PAGE),
];
const TABLE: GuestAddress = GuestAddress(0);
const SIZE: u16 = 8;
/// Where indirect tables are.
const INDIRECT: u64 = 0x800;
const INDIRECT_LEN: usize = 12;
/// Where an available ring with one element is, for virtio-queue.
const AVAIL: GuestAddress = GuestAddress(0xf00);
const USED: GuestAddress = GuestAddress(0xf80);

const END: u16 = 0;
const BUFFER: u64 = 2 * PAGE;

fn memory() -> GuestMemory {
    GuestMemory::anonymous(&RANGES).unwrap()
}

fn desc(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

fn store(memory: &GuestMemory, at: u64, table: &[Descriptor]) {
    for (entry, at) in table.iter().zip((at..).step_by(16)) {
        memory.write_obj(GuestAddress(at), entry).unwrap();
    }
}

/// Walks the chain at descriptor 0 of a table that starts with `table`.
fn walk_over(table: &[Descriptor], indirect_table: &[Descriptor]) -> Result<Chain, ChainError> {
    let memory = memory();
    store(&memory, TABLE.0, table);
    store(&memory, INDIRECT, indirect_table);
    let mut chain = Chain::new();
    walk(&memory, TABLE, SIZE, 0, true, &mut chain).map(|()| chain)
}

fn indirect(entries: u32) -> Descriptor {
    desc(INDIRECT, 16 * entries, DESC_INDIRECT, 0)
}

#[test]
fn a_chain_gives_readable_then_writable_buffers() {
    let chain = walk_over(
        &[
            desc(BUFFER, 10, DESC_NEXT, 5),
            desc(0, 0, 0, 0),
            desc(BUFFER + 64, 30, DESC_WRITE, 7),
            desc(0, 0, 0, 0),
            desc(0, 0, 0, 0),
            desc(BUFFER + 32, 20, DESC_NEXT, 2),
        ],
        &[],
    )
    .unwrap();

    assert_eq!(
        (chain.head(), chain.readable_len(), chain.writable_len()),
        (0, 30, 30)
    );
    assert_eq!(lens(chain.readable().iovecs(usize::MAX)), [10, 20]);
    assert_eq!(lens(chain.writable().iovecs(usize::MAX)), [30]);
}

#[test]
fn a_chain_may_end_in_an_indirect_table() {
    let chain = walk_over(
        &[
            desc(BUFFER, 10, DESC_NEXT, 1),
            // The write flag means nothing here.
            desc(INDIRECT, 32, DESC_INDIRECT | DESC_WRITE, 0),
        ],
        &[
            desc(BUFFER, 20, DESC_NEXT, 1),
            desc(BUFFER, 30, DESC_WRITE, 0),
        ],
    )
    .unwrap();

    assert_eq!(lens(chain.readable().iovecs(usize::MAX)), [10, 20]);
    assert_eq!(lens(chain.writable().iovecs(usize::MAX)), [30]);
}

#[test]
fn as_many_buffers_as_the_queue_has_descriptors_are_allowed() {
    let table: Vec<_> = (1..=SIZE)
        .map(|next| desc(BUFFER, 1, if next < SIZE { DESC_NEXT } else { END }, next))
        .collect();

    assert_eq!(
        walk_over(&table, &[]).unwrap().readable_len(),
        u32::from(SIZE)
    );
    assert_eq!(
        walk_over(&[indirect(SIZE.into())], &table)
            .unwrap()
            .readable_len(),
        u32::from(SIZE)
    );
}

#[test]
fn a_buffer_over_adjacent_regions_is_split() {
    let chain = walk_over(&[desc(4 * PAGE - 3, 10, END, 0)], &[]).unwrap();

    assert_eq!(lens(chain.readable().iovecs(usize::MAX)), [3, 7]);
}

#[test]
fn an_indirect_table_over_adjacent_regions_is_read() {
    let memory = memory();
    let at = 4 * PAGE - 24;
    store(&memory, TABLE.0, &[desc(at, 48, DESC_INDIRECT, 0)]);
    let entries =
        [1, 2, 3].map(|next| desc(BUFFER, 1, if next < 3 { DESC_NEXT } else { END }, next));
    store(&memory, at, &entries);
    let mut chain = Chain::new();

    walk(&memory, TABLE, SIZE, 0, true, &mut chain).unwrap();

    assert_eq!(chain.readable_len(), 3);
}

#[rstest]
#[case::next_outside_the_table(
    &[desc(BUFFER, 1, DESC_NEXT, SIZE)],
    "goes on at descriptor 8, in a table of 8"
)]
#[case::loop_to_itself(&[desc(BUFFER, 1, DESC_NEXT, 0)], "loop")]
#[case::loop_of_two(
    &[desc(BUFFER, 1, DESC_NEXT, 1), desc(BUFFER, 1, DESC_NEXT, 0)],
    "loop"
)]
#[case::empty_buffer(&[desc(BUFFER, 0, END, 0)], "descriptor 0 is a buffer of 0 bytes")]
#[case::start_in_the_hole(&[desc(6 * PAGE, 1, END, 0)], "descriptor 0 is a buffer outside")]
#[case::start_valid_end_in_the_hole(&[desc(6 * PAGE - 1, 2, END, 0)], "buffer outside")]
#[case::over_the_hole(&[desc(6 * PAGE - 1, PAGE as u32 + 2, END, 0)], "buffer outside")]
#[case::start_valid_end_past_memory(&[desc(8 * PAGE - 1, 2, END, 0)], "buffer outside")]
#[case::address_wraps(&[desc(u64::MAX, 2, END, 0)], "buffer outside")]
#[case::second_buffer_bad(
    &[desc(BUFFER, 1, DESC_NEXT, 1), desc(8 * PAGE, 1, END, 0)],
    "descriptor 1 is a buffer outside"
)]
#[case::readable_after_writable(
    &[desc(BUFFER, 1, DESC_WRITE | DESC_NEXT, 1), desc(BUFFER, 1, END, 0)],
    "descriptor 1 is to be read, after one to be written"
)]
#[case::indirect_goes_on(
    &[desc(INDIRECT, 16, DESC_INDIRECT | DESC_NEXT, 1)],
    "the chain goes on behind it"
)]
#[case::indirect_of_nothing(&[indirect(0)], "table of 0 bytes")]
#[case::indirect_of_half_a_descriptor(
    &[desc(INDIRECT, 24, DESC_INDIRECT, 0)],
    "table of 24 bytes"
)]
#[case::indirect_table_reaches_the_hole(
    &[desc(6 * PAGE - 16, 32, DESC_INDIRECT, 0)],
    "indirect table outside"
)]
#[case::indirect_table_wraps(
    &[desc(u64::MAX - 15, 32, DESC_INDIRECT, 0)],
    "indirect table outside"
)]
fn fault_in_the_table(#[case] table: &[Descriptor], #[case] says: &str) {
    let error = walk_over(table, &[]).unwrap_err();

    assert!(error.to_string().contains(says), "{error}");
}

#[rstest]
#[case::nested(1, &[indirect(1)], "descriptor 0 of an indirect table is an indirect table")]
#[case::next_outside_the_table(
    2,
    &[desc(BUFFER, 1, DESC_NEXT, 2)],
    "goes on at descriptor 2, in a table of 2"
)]
#[case::loop_in_the_table(
    2,
    &[desc(BUFFER, 1, DESC_NEXT, 1), desc(BUFFER, 1, DESC_NEXT, 0)],
    "loop"
)]
#[case::loop_in_a_table_larger_than_the_queue(
    32,
    &[desc(BUFFER, 1, DESC_NEXT, 0)],
    "more than 8 descriptors"
)]
#[case::readable_after_writable(
    2,
    &[desc(BUFFER, 1, DESC_WRITE | DESC_NEXT, 1), desc(BUFFER, 1, END, 0)],
    "descriptor 1 is to be read, after"
)]
#[case::empty_buffer(1, &[desc(BUFFER, 0, END, 0)], "buffer of 0 bytes")]
fn fault_in_an_indirect_table(
    #[case] entries: u32,
    #[case] table: &[Descriptor],
    #[case] says: &str,
) {
    let error = walk_over(&[indirect(entries)], table).unwrap_err();

    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn direct_and_indirect_buffers_are_counted_together() {
    let table = [desc(BUFFER, 1, DESC_NEXT, 1), indirect(SIZE.into())];
    let entries: Vec<_> = (1..=SIZE)
        .map(|next| desc(BUFFER, 1, if next < SIZE { DESC_NEXT } else { END }, next))
        .collect();

    assert_eq!(
        walk_over(&table, &entries).unwrap_err(),
        ChainError::TooLong { queue_size: SIZE }
    );
}

#[test]
fn buffers_that_overlap_cannot_add_up_past_32_bits() {
    let len = 2u64 << 30;
    let memory = GuestMemory::anonymous(&[(GuestAddress(0), len)]).unwrap();
    let half = u32::try_from(len).unwrap();
    store(
        &memory,
        0,
        &[desc(0, half, DESC_NEXT, 1), desc(0, half, END, 0)],
    );

    let error = walk(&memory, TABLE, SIZE, 0, false, &mut Chain::new()).unwrap_err();

    assert_eq!(error, ChainError::TooManyBytes);
}

#[test]
fn indirect_without_negotiation_is_refused() {
    let memory = memory();
    store(&memory, TABLE.0, &[indirect(1)]);

    let error = walk(&memory, TABLE, SIZE, 0, false, &mut Chain::new()).unwrap_err();

    assert_eq!(error, ChainError::IndirectNotNegotiated { index: 0 });
}

#[rstest]
#[case::head_outside(TABLE, SIZE, SIZE, "starts at descriptor 8, in a table of 8")]
#[case::no_descriptors(TABLE, 0, 0, "in a table of 0")]
#[case::table_in_the_hole(GuestAddress(6 * PAGE), SIZE, 0, "table at 0x6000 is not in")]
#[case::table_reaches_the_hole(GuestAddress(6 * PAGE - 16), SIZE, 0, "is not in guest memory")]
fn fault_before_the_first_descriptor(
    #[case] table: GuestAddress,
    #[case] size: u16,
    #[case] head: u16,
    #[case] says: &str,
) {
    let error = walk(&memory(), table, size, head, true, &mut Chain::new()).unwrap_err();

    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_chain_is_empty_after_an_error_and_can_be_used_again() {
    let memory = memory();
    store(
        &memory,
        TABLE.0,
        &[desc(BUFFER, 9, DESC_NEXT, 1), desc(0, 0, END, 0)],
    );
    let mut chain = Chain::new();

    let broken = walk(&memory, TABLE, SIZE, 0, true, &mut chain);

    assert_eq!(broken, Err(ChainError::Empty { index: 1 }));
    assert_eq!((chain.readable_len(), chain.writable_len()), (0, 0));
    assert!(chain.readable().iovecs(usize::MAX).is_empty());

    store(&memory, TABLE.0, &[desc(BUFFER, 9, DESC_WRITE, 0)]);
    walk(&memory, TABLE, SIZE, 0, true, &mut chain).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (0, 9));
}

#[test]
fn a_chain_keeps_its_memory_mapped() {
    let memory = memory();
    memory.write(GuestAddress(BUFFER), b"kept").unwrap();
    store(&memory, TABLE.0, &[desc(BUFFER, 4, END, 0)]);
    let mut chain = Chain::new();
    walk(&memory, TABLE, SIZE, 0, true, &mut chain).unwrap();

    drop(memory);

    assert_eq!(chain.readable().read_obj(), Ok(*b"kept"));
}

fn lens(ranges: &[libc::iovec]) -> Vec<usize> {
    ranges.iter().map(|range| range.iov_len).collect()
}

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
