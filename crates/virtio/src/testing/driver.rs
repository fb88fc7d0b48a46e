// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's side of a split virtqueue, in guest memory.

use std::sync::atomic::Ordering;

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use thiserror::Error;

use crate::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, Queue, QueueAddresses, QueueSetupError,
};

/// Alignment of all that is placed in memory.
const ALIGNMENT: u64 = 16;

/// Why a driver could not do as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DriverError {
    /// Not enough descriptors are free, or the chain has none.
    #[error("a chain of {wanted} descriptors, and {free} are free")]
    Descriptors {
        /// How many are wanted.
        wanted: usize,
        /// How many are free.
        free: usize,
    },
    /// The driver's part of memory is full.
    #[error("no room for {0} bytes in the driver's part of memory")]
    Room(u64),
    /// The driver's part of memory is none.
    #[error("the driver's part of memory is not in guest memory")]
    Memory(#[from] AccessError),
}

/// A chain that the device has returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of its first descriptor, as the device said.
    pub head: u32,
    /// How many bytes the device says it wrote.
    pub len: u32,
    /// What is in the chain's writable buffers now, up to `len` bytes. Empty for a head that the
    /// driver does not know.
    pub data: Vec<u8>,
}

/// A driver with one queue. The queue and the buffers of its chains are in a part of guest
/// memory that it has for itself.
///
/// Buffers are placed one after the other, and their room is free again when the device has
/// returned every chain.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemory,
    addresses: QueueAddresses,
    buffers: GuestAddress,
    next_buffer: GuestAddress,
    end: GuestAddress,
    free: Vec<u16>,
    chains: Vec<Option<Added>>,
    next_avail: u16,
    next_used: u16,
}

/// What the driver remembers of a chain.
#[derive(Debug)]
struct Added {
    descriptors: Vec<u16>,
    writable: Vec<(GuestAddress, u32)>,
}

impl Driver {
    /// A driver with an empty queue of `size` descriptors, in the `len` bytes from `start` on.
    ///
    /// # Errors
    ///
    /// [`DriverError`], if these are not memory or too few.
    pub fn new(
        memory: &GuestMemory,
        start: GuestAddress,
        len: usize,
        size: u16,
    ) -> Result<Self, DriverError> {
        memory.check(start, len)?;
        let mut driver = Self {
            memory: memory.clone(),
            addresses: QueueAddresses::default(),
            buffers: start,
            next_buffer: start,
            // Inside the address space, as just checked.
            end: GuestAddress(start.0.saturating_add(len as u64)),
            free: (0..size).rev().collect(),
            chains: (0..size).map(|_| None).collect(),
            next_avail: 0,
            next_used: 0,
        };
        let count = u64::from(size);
        driver.addresses = QueueAddresses {
            size,
            desc_table: driver.room(16 * count)?,
            avail_ring: driver.room(6 + 2 * count)?,
            used_ring: driver.room(6 + 8 * count)?,
        };
        driver.buffers = driver.next_buffer;
        Ok(driver)
    }

    /// Where the queue is.
    #[must_use]
    pub const fn addresses(&self) -> QueueAddresses {
        self.addresses
    }

    /// The memory that the queue is in.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The device's side of the queue, at its start.
    ///
    /// # Errors
    ///
    /// [`QueueSetupError`], if the size is not allowed.
    pub fn queue(&self, features: u64) -> Result<Queue, QueueSetupError> {
        Queue::new(self.memory.clone(), self.addresses, features)
    }

    /// Makes a chain available: `readable` has the contents of the buffers that the device
    /// reads, `writable` the lengths of those that it writes. Gives the chain's head.
    ///
    /// # Errors
    ///
    /// [`DriverError`], if the chain has no buffer, or there is no room for it.
    pub fn add(&mut self, readable: &[&[u8]], writable: &[u32]) -> Result<u16, DriverError> {
        let count = readable.len() + writable.len();
        self.require_descriptors(count)?;
        let (mut table, writable) = self.place_buffers(readable, writable)?;
        // Checked above; lowest index first.
        let mut descriptors = self.free.split_off(self.free.len() - count);
        descriptors.reverse();
        for (entry, next) in table.iter_mut().zip(descriptors.iter().skip(1)) {
            entry.next = *next;
        }
        for (index, entry) in descriptors.iter().zip(&table) {
            self.put(*index, *entry)?;
        }
        self.remember(Added {
            descriptors,
            writable,
        })
    }

    /// As [`add`](Self::add), with the descriptors in an indirect table.
    ///
    /// # Errors
    ///
    /// [`DriverError`], if the chain has no buffer, or there is no room for it.
    pub fn add_indirect(
        &mut self,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Result<u16, DriverError> {
        // One of the ring's, whatever the table has; but the table has some.
        self.require_descriptors((readable.len() + writable.len()).min(1))?;
        let (mut table, writable) = self.place_buffers(readable, writable)?;
        let len = Descriptor::SIZE * table.len();
        let address = self.room(len as u64)?;
        for (index, entry) in table.iter_mut().enumerate() {
            // A next that does not fit is past the end of any chain.
            entry.next = u16::try_from(index + 1).unwrap_or(u16::MAX);
            let offset = (Descriptor::SIZE * index) as u64;
            self.memory
                .write_obj(GuestAddress(address.0 + offset), entry)?;
        }
        let descriptors = self.free.split_off(self.free.len() - 1);
        let entry = Descriptor {
            address: address.0,
            // Room for it was found in memory that a test made.
            len: u32::try_from(len).unwrap_or(u32::MAX),
            flags: DESC_INDIRECT,
            next: 0,
        };
        self.put(descriptors[0], entry)?;
        self.remember(Added {
            descriptors,
            writable,
        })
    }

    /// Writes a descriptor as it is, right or wrong.
    ///
    /// # Errors
    ///
    /// [`DriverError::Memory`], if the table has no such descriptor and there is no memory.
    pub fn put(&mut self, index: u16, descriptor: Descriptor) -> Result<(), DriverError> {
        let offset = Descriptor::SIZE as u64 * u64::from(index);
        let address = GuestAddress(self.addresses.desc_table.0 + offset);
        Ok(self.memory.write_obj(address, &descriptor)?)
    }

    /// Makes the chain that starts at `head` available, whether there is one or not.
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn publish(&mut self, head: u16) -> Result<(), DriverError> {
        let slot = u64::from(
            self.next_avail
                .checked_rem(self.addresses.size)
                .unwrap_or(0),
        );
        let ring = self.addresses.avail_ring.0;
        self.memory
            .store_u16(GuestAddress(ring + 4 + 2 * slot), head, Ordering::Relaxed)?;
        self.set_avail_index(self.next_avail.wrapping_add(1))
    }

    /// Writes the available ring's index as it is, right or wrong.
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn set_avail_index(&mut self, index: u16) -> Result<(), DriverError> {
        let ring = self.addresses.avail_ring.0;
        self.memory
            .store_u16(GuestAddress(ring + 2), index, Ordering::Release)?;
        self.next_avail = index;
        Ok(())
    }

    /// Writes the available ring's flags: 1 says that no interrupts are wanted (without
    /// EVENT_IDX).
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn set_avail_flags(&mut self, flags: u16) -> Result<(), DriverError> {
        let ring = self.addresses.avail_ring;
        Ok(self.memory.store_u16(ring, flags, Ordering::Relaxed)?)
    }

    /// Asks for an interrupt when the used ring's index goes past `index` (with EVENT_IDX).
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn set_used_event(&mut self, index: u16) -> Result<(), DriverError> {
        let offset = 4 + 2 * u64::from(self.addresses.size);
        let address = GuestAddress(self.addresses.avail_ring.0 + offset);
        Ok(self.memory.store_u16(address, index, Ordering::Relaxed)?)
    }

    /// Reads the used ring's flags: 1 says that the device wants no kicks (without EVENT_IDX).
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn used_flags(&self) -> Result<u16, DriverError> {
        let ring = self.addresses.used_ring;
        Ok(self.memory.load_u16(ring, Ordering::Relaxed)?)
    }

    /// Reads the index that the device wants a kick for (with EVENT_IDX).
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn avail_event(&self) -> Result<u16, DriverError> {
        let offset = 4 + 8 * u64::from(self.addresses.size);
        let address = GuestAddress(self.addresses.used_ring.0 + offset);
        Ok(self.memory.load_u16(address, Ordering::Relaxed)?)
    }

    /// Takes the next chain that the device has returned; `None` if there is none.
    ///
    /// # Errors
    ///
    /// None in practice: the ring is in memory.
    pub fn used(&mut self) -> Result<Option<Used>, DriverError> {
        let ring = self.addresses.used_ring.0;
        let index = self
            .memory
            .load_u16(GuestAddress(ring + 2), Ordering::Acquire)?;
        if index == self.next_used {
            return Ok(None);
        }
        let slot = u64::from(self.next_used.checked_rem(self.addresses.size).unwrap_or(0));
        let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(ring + 4 + 8 * slot))?;
        self.next_used = self.next_used.wrapping_add(1);
        let data = self.forget(head, len)?;
        Ok(Some(Used { head, len, data }))
    }

    fn require_descriptors(&self, wanted: usize) -> Result<(), DriverError> {
        let free = self.free.len();
        if wanted == 0 || wanted > free {
            return Err(DriverError::Descriptors { wanted, free });
        }
        Ok(())
    }

    /// `len` bytes of the driver's part of memory.
    fn room(&mut self, len: u64) -> Result<GuestAddress, DriverError> {
        let start = self.next_buffer.0.checked_next_multiple_of(ALIGNMENT);
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.end.0 => {
                self.next_buffer = GuestAddress(end);
                Ok(GuestAddress(start))
            }
            _ => Err(DriverError::Room(len)),
        }
    }

    /// Descriptors for the buffers, in order, each with the flag that one follows but the last.
    #[expect(
        clippy::type_complexity,
        reason = "descriptors, and where the writable ones are"
    )]
    fn place_buffers(
        &mut self,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Result<(Vec<Descriptor>, Vec<(GuestAddress, u32)>), DriverError> {
        let mut table = Vec::with_capacity(readable.len() + writable.len());
        let mut places = Vec::with_capacity(writable.len());
        for content in readable {
            let len = u32::try_from(content.len())
                .map_err(|_| DriverError::Room(content.len() as u64))?;
            let address = self.room(len.into())?;
            if len > 0 {
                self.memory.write(address, content)?;
            }
            table.push(descriptor(address, len, DESC_NEXT));
        }
        for &len in writable {
            let address = self.room(len.into())?;
            places.push((address, len));
            table.push(descriptor(address, len, DESC_NEXT | DESC_WRITE));
        }
        if let Some(last) = table.last_mut() {
            last.flags &= !DESC_NEXT;
        }
        Ok((table, places))
    }

    fn remember(&mut self, chain: Added) -> Result<u16, DriverError> {
        // A chain has at least one descriptor.
        let head = chain.descriptors[0];
        self.chains[usize::from(head)] = Some(chain);
        self.publish(head)?;
        Ok(head)
    }

    /// What the device wrote into the chain, which is the driver's again.
    fn forget(&mut self, head: u32, len: u32) -> Result<Vec<u8>, DriverError> {
        let chain = usize::try_from(head)
            .ok()
            .and_then(|head| self.chains.get_mut(head)?.take());
        let Some(chain) = chain else {
            return Ok(Vec::new());
        };
        let mut data = Vec::new();
        let mut left = len;
        for (address, buffer_len) in chain.writable {
            let part = left.min(buffer_len);
            left -= part;
            if part > 0 {
                let mut bytes = vec![0; part as usize];
                self.memory.read(address, &mut bytes)?;
                data.append(&mut bytes);
            }
        }
        self.free.extend(chain.descriptors);
        if self.chains.iter().all(Option::is_none) {
            self.next_buffer = self.buffers;
        }
        Ok(data)
    }
}

const fn descriptor(address: GuestAddress, len: u32, flags: u16) -> Descriptor {
    Descriptor {
        address: address.0,
        len,
        flags,
        next: 0,
    }
}
