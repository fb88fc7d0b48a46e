// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Walking chains: each fault by its name, and two laws: `walk` agrees with a naive model on any
//! table, and with virtio-queue on every table that it accepts.

mod faults;
mod laws;
mod walks;

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, ChainError, DESC_INDIRECT, DESC_NEXT, Descriptor, walk};

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

/// A table with a chain of `count` buffers of a byte.
fn buffers(count: u16) -> Vec<Descriptor> {
    (1..=count)
        .map(|next| desc(BUFFER, 1, if next < count { DESC_NEXT } else { END }, next))
        .collect()
}
