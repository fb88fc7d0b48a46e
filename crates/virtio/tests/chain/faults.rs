// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each fault by its name.

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, ChainError, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use rstest::rstest;

use crate::{
    BUFFER, END, INDIRECT, PAGE, SIZE, TABLE, buffers, desc, indirect, memory, store, walk_over,
};

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

    let error = walk_over(&table, &buffers(SIZE)).unwrap_err();

    assert_eq!(error, ChainError::TooLong { queue_size: SIZE });
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
