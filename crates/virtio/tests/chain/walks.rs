// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a chain holds after a walk.

use coracle_memory::GuestAddress;
use coracle_virtio::{Chain, ChainError, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, walk};

use crate::{
    BUFFER, END, INDIRECT, PAGE, SIZE, TABLE, buffers, desc, indirect, memory, store, walk_over,
};

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
    let table = buffers(SIZE);

    let direct = walk_over(&table, &[]).unwrap();
    let indirect = walk_over(&[indirect(SIZE.into())], &table).unwrap();

    let lens = (direct.readable_len(), indirect.readable_len());
    assert_eq!(lens, (SIZE.into(), SIZE.into()));
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
    store(&memory, at, &buffers(3));
    let mut chain = Chain::new();

    walk(&memory, TABLE, SIZE, 0, true, &mut chain).unwrap();

    assert_eq!(chain.readable_len(), 3);
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
