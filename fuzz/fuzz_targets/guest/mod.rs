// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest for targets that take a descriptor chain: memory, and a chain that is mostly inside of it.

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, ChainError, walk};

const QUEUE_SIZE: u16 = 16;
const TABLE: GuestAddress = GuestAddress(0x1000);
const INDIRECT_TABLE: u64 = 0x2000;
const REGION: u64 = 0x20_0000;

/// Two regions that touch, then a hole, then a third. Mapped once, so that an input costs no system call.
static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    GuestMemory::anonymous(&[
        (GuestAddress(0), REGION),
        (GuestAddress(REGION), REGION),
        (GuestAddress(4 * REGION), REGION),
    ])
    .expect("6 MiB of address space")
});

#[derive(Arbitrary, Debug)]
enum Address {
    Near(u32),
    Indirect,
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u16),
    Entries(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
struct Descriptor {
    address: Address,
    len: Length,
    flags: u8,
    next: u8,
}

impl Descriptor {
    fn bytes(&self) -> [u8; 16] {
        let address = match self.address {
            Address::Near(address) => u64::from(address) % (6 * REGION),
            Address::Indirect => INDIRECT_TABLE,
            Address::Any(address) => address,
        };
        let len = match self.len {
            Length::Short(len) => len.into(),
            Length::Entries(count) => u32::from(count) * 16,
            Length::Any(len) => len,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12] = self.flags;
        bytes[14] = self.next;
        bytes
    }
}

/// What the guest wrote.
#[derive(Arbitrary, Debug)]
pub struct Request {
    table: [Descriptor; QUEUE_SIZE as usize],
    indirect_table: [Descriptor; QUEUE_SIZE as usize],
    head: u8,
    indirect: bool,
}

impl Request {
    /// The chain, if it is one.
    pub fn chain(&self) -> Result<Chain, ChainError> {
        write_table(TABLE, &self.table);
        write_table(GuestAddress(INDIRECT_TABLE), &self.indirect_table);
        let mut chain = Chain::new();
        walk(
            &MEMORY,
            TABLE,
            QUEUE_SIZE,
            self.head.into(),
            self.indirect,
            &mut chain,
        )?;
        Ok(chain)
    }
}

fn write_table(at: GuestAddress, table: &[Descriptor]) {
    let bytes: Vec<u8> = table.iter().flat_map(Descriptor::bytes).collect();
    MEMORY.write(at, &bytes).expect("the tables are in memory");
}
