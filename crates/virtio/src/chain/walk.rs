// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Follows a chain through its tables and checks everything that the driver says in it.
//!
//! Each descriptor is copied out of guest memory once, and what was checked is what is used:
//! the driver may change the table under the walk, and gains nothing by it.

use coracle_memory::{AccessError, GuestAddress, GuestMemory, GuestSlice};
use thiserror::Error;

use super::Chain;
use super::descriptor::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};

/// What is wrong with a descriptor chain. All of it is the driver's doing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The descriptor table is not in memory.
    #[error("the descriptor table at {table} is not in guest memory")]
    Table {
        /// Where the table starts.
        table: GuestAddress,
        /// How it misses memory.
        source: AccessError,
    },
    /// The chain starts outside the table.
    #[error("chain starts at descriptor {head}, in a table of {table_len}")]
    Head {
        /// Index of the descriptor.
        head: u16,
        /// Number of descriptors in the table.
        table_len: u16,
    },
    /// A descriptor refers to one outside the table.
    #[error("chain goes on at descriptor {next}, in a table of {table_len}")]
    Next {
        /// Index of the descriptor.
        next: u16,
        /// Number of descriptors in the table.
        table_len: u32,
    },
    /// The chain comes back to a descriptor that it has passed.
    #[error("chain is a loop: it has more descriptors than its table of {table_len}")]
    Loop {
        /// Number of descriptors in the table.
        table_len: u32,
    },
    /// The chain has more descriptors than the queue (section 2.7.5.3.1 forbids it to drivers).
    #[error("chain has more than {queue_size} descriptors, the size of its queue")]
    TooLong {
        /// Size of the queue.
        queue_size: u16,
    },
    /// The buffers together have more bytes than a used element can tell. They may overlap, so
    /// this has nothing to do with how much memory there is.
    #[error("chain has more than {max} bytes", max = u32::MAX)]
    TooManyBytes,
    /// A buffer without a byte.
    #[error("descriptor {index} is a buffer of 0 bytes")]
    Empty {
        /// Index of the descriptor in its table.
        index: u16,
    },
    /// A buffer that is not in guest memory, from its first byte to its last.
    #[error("descriptor {index} is a buffer outside guest memory")]
    Buffer {
        /// Index of the descriptor in its table.
        index: u16,
        /// How it misses memory.
        source: AccessError,
    },
    /// A buffer for the device to read comes after one for it to write (section 2.7.4.2).
    #[error("descriptor {index} is to be read, after one to be written")]
    ReadableAfterWritable {
        /// Index of the descriptor in its table.
        index: u16,
    },
    /// A table of descriptors, which the driver has not negotiated.
    #[error("descriptor {index} is an indirect table, which was not negotiated")]
    IndirectNotNegotiated {
        /// Index of the descriptor in its table.
        index: u16,
    },
    /// A table of descriptors inside another.
    #[error("descriptor {index} of an indirect table is an indirect table")]
    IndirectNested {
        /// Index of the descriptor in its table.
        index: u16,
    },
    /// A table of descriptors that is not the end of its chain.
    #[error("descriptor {index} is an indirect table, and the chain goes on behind it")]
    IndirectWithNext {
        /// Index of the descriptor in its table.
        index: u16,
    },
    /// A table of descriptors that does not hold whole descriptors, or none.
    #[error("descriptor {index} is an indirect table of {len} bytes, not a multiple of 16")]
    IndirectLength {
        /// Index of the descriptor in its table.
        index: u16,
        /// Length of the table in bytes.
        len: u32,
    },
    /// A table of descriptors that is not in guest memory.
    #[error("descriptor {index} is an indirect table outside guest memory")]
    IndirectTable {
        /// Index of the descriptor in its table.
        index: u16,
        /// How it misses memory.
        source: AccessError,
    },
}

/// Walks the chain that starts at descriptor `head` of the table of `queue_size` descriptors at
/// `table`, and fills `chain` with its buffers. `indirect` says whether the driver has negotiated
/// [`RING_INDIRECT_DESC`](crate::features::RING_INDIRECT_DESC).
///
/// Takes at most `queue_size` steps, whatever the driver wrote, and uses memory for as many
/// buffers. After an error the chain is empty.
///
/// # Errors
///
/// [`ChainError`], which names the first fault on the way.
pub fn walk(
    memory: &GuestMemory,
    table: GuestAddress,
    queue_size: u16,
    head: u16,
    indirect: bool,
    chain: &mut Chain,
) -> Result<(), ChainError> {
    chain.clear(memory, head);
    let len = usize::from(queue_size) * Descriptor::SIZE;
    let slice = memory
        .slice(table, len)
        .map_err(|source| ChainError::Table { table, source })?;
    walk_table(memory, slice, queue_size, head, indirect, chain)
}

/// As [`walk`], with the table looked up before.
pub(crate) fn walk_table(
    memory: &GuestMemory,
    table: GuestSlice<'_>,
    queue_size: u16,
    head: u16,
    indirect: bool,
    chain: &mut Chain,
) -> Result<(), ChainError> {
    chain.clear(memory, head);
    let walked = Walk {
        memory,
        chain: &mut *chain,
        queue_size,
        descriptors: 0,
    }
    .queue_table(table, head, indirect);
    if walked.is_err() {
        chain.clear(memory, head);
    }
    walked
}

impl Chain {
    fn clear(&mut self, memory: &GuestMemory, head: u16) {
        self.head = head;
        self.buffers.reset(memory);
        self.readable_slices = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    chain: &'a mut Chain,
    queue_size: u16,
    /// How many buffers were added, over both tables.
    descriptors: u16,
}

impl Walk<'_> {
    fn queue_table(
        &mut self,
        table: GuestSlice<'_>,
        head: u16,
        indirect: bool,
    ) -> Result<(), ChainError> {
        let table_len = self.queue_size;
        if head >= table_len {
            return Err(ChainError::Head { head, table_len });
        }
        let mut index = head;
        // A chain without a loop passes each descriptor at most once.
        for _ in 0..table_len {
            let descriptor: Descriptor = table
                .read_obj(usize::from(index) * Descriptor::SIZE)
                // Not reached: `index` is below `table_len`, and the table holds that many.
                .map_err(|source| ChainError::Buffer { index, source })?;
            if descriptor.has(DESC_INDIRECT) {
                return self.indirect_table(index, descriptor, indirect);
            }
            self.add(index, descriptor)?;
            if !descriptor.has(DESC_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
            if index >= table_len {
                return Err(ChainError::Next {
                    next: index,
                    table_len: table_len.into(),
                });
            }
        }
        Err(ChainError::Loop {
            table_len: table_len.into(),
        })
    }

    fn indirect_table(
        &mut self,
        index: u16,
        descriptor: Descriptor,
        negotiated: bool,
    ) -> Result<(), ChainError> {
        if !negotiated {
            return Err(ChainError::IndirectNotNegotiated { index });
        }
        if descriptor.has(DESC_NEXT) {
            return Err(ChainError::IndirectWithNext { index });
        }
        // The write flag of such a descriptor means nothing (section 2.7.5.3.2).
        let len = descriptor.len;
        let table_len = len / Descriptor::SIZE as u32;
        if table_len == 0 || !len.is_multiple_of(Descriptor::SIZE as u32) {
            return Err(ChainError::IndirectLength { index, len });
        }
        let table = descriptor.start();
        self.memory
            .check(table, len as usize)
            .map_err(|source| ChainError::IndirectTable { index, source })?;

        let mut next = 0u16;
        for _ in 0..table_len {
            let entry = self.indirect_entry(table, next)?;
            if entry.has(DESC_INDIRECT) {
                return Err(ChainError::IndirectNested { index: next });
            }
            self.add(next, entry)?;
            if !entry.has(DESC_NEXT) {
                return Ok(());
            }
            next = entry.next;
            if u32::from(next) >= table_len {
                return Err(ChainError::Next { next, table_len });
            }
        }
        Err(ChainError::Loop { table_len })
    }

    /// One entry of an indirect table that was checked to be in memory. The table may lie in
    /// two adjacent regions, so each entry is looked up.
    fn indirect_entry(&self, table: GuestAddress, index: u16) -> Result<Descriptor, ChainError> {
        let offset = u64::from(index) * Descriptor::SIZE as u64;
        table
            .checked_add(offset)
            .ok_or(AccessError::Overflow {
                address: table,
                len: Descriptor::SIZE,
            })
            .and_then(|address| self.memory.read_obj(address))
            .map_err(|source| ChainError::IndirectTable { index, source })
    }

    fn add(&mut self, index: u16, descriptor: Descriptor) -> Result<(), ChainError> {
        // An indirect table may have 2^28 entries: what bounds the work is the queue's size.
        if self.descriptors == self.queue_size {
            return Err(ChainError::TooLong {
                queue_size: self.queue_size,
            });
        }
        self.descriptors += 1;
        if descriptor.len == 0 {
            return Err(ChainError::Empty { index });
        }
        let chain = &mut *self.chain;
        let total = chain.readable_len.checked_add(chain.writable_len);
        total
            .and_then(|total| total.checked_add(descriptor.len))
            .ok_or(ChainError::TooManyBytes)?;

        let writable = descriptor.has(DESC_WRITE);
        if !writable && chain.writable_len > 0 {
            return Err(ChainError::ReadableAfterWritable { index });
        }
        chain
            .buffers
            .push(descriptor.start(), descriptor.len as usize)
            .map_err(|source| ChainError::Buffer { index, source })?;
        // Neither sum overflows: the total was just checked.
        if writable {
            chain.writable_len += descriptor.len;
        } else {
            chain.readable_len += descriptor.len;
            chain.readable_slices = chain.buffers.len();
        }
        Ok(())
    }
}
