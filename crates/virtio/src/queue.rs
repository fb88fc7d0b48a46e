// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of a split virtqueue (virtio 1.3, section 2.7).

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use coracle_memory::{AccessError, GuestAddress, GuestMemory, GuestSlice, OwnedSlice};
use thiserror::Error;
use zerocopy::{Immutable, IntoBytes};

use crate::chain::{Chain, ChainError, Descriptor, walk_table};
use crate::features;

/// The largest number of descriptors in a queue.
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Available ring, flag: the driver wants no interrupts. Without EVENT_IDX only.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used ring, flag: the device wants no kicks. Without EVENT_IDX only.
const USED_NO_NOTIFY: u16 = 1;

/// Offsets in bytes that both rings share.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

/// Bytes per element of the available ring: the index of a chain's head.
const AVAIL_ELEMENT: usize = 2;
/// Bytes per element of the used ring.
const USED_ELEMENT: usize = size_of::<UsedElement>();

/// Where the driver has put a queue, and how many descriptors it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table ("descriptor area"): 16 bytes a descriptor, aligned to 16.
    pub desc_table: GuestAddress,
    /// The available ring ("driver area"): 6 bytes and 2 a descriptor, aligned to 2.
    pub avail_ring: GuestAddress,
    /// The used ring ("device area"): 6 bytes and 8 a descriptor, aligned to 4.
    pub used_ring: GuestAddress,
}

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    DescriptorTable,
    /// The available ring.
    AvailableRing,
    /// The used ring.
    UsedRing,
}

impl fmt::Display for RingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DescriptorTable => "descriptor table",
            Self::AvailableRing => "available ring",
            Self::UsedRing => "used ring",
        })
    }
}

/// Why a queue cannot be used as the driver set it up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QueueSetupError {
    /// The size is no power of two, or too large.
    #[error("a queue of {0} descriptors: not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// A part of the queue is not aligned as section 2.7 demands.
    #[error("the {part} at {address} is not aligned to {alignment} bytes")]
    Misaligned {
        /// Which part.
        part: RingPart,
        /// Where it is.
        address: GuestAddress,
        /// What its address has to be a multiple of.
        alignment: u64,
    },
    /// A part of the queue is not in one region of guest memory.
    #[error("the {part} at {address} is not in guest memory")]
    Memory {
        /// Which part.
        part: RingPart,
        /// Where it is.
        address: GuestAddress,
        /// How it misses memory.
        source: AccessError,
    },
}

/// What is wrong with a queue in use: the driver broke it, except for
/// [`NotInFlight`](Self::NotInFlight). The device calls
/// [`Interrupt::needs_reset`](crate::Interrupt::needs_reset) and stops using the queue.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The driver's index says that more chains are available than the queue has descriptors.
    #[error("the driver's index {index} is more than {size} ahead of ours, {ours}")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// How far the device has got.
        ours: u16,
        /// Size of the queue.
        size: u16,
    },
    /// A chain that the device still works on was made available again.
    #[error("the chain at descriptor {head} was made available while it is in use")]
    InFlight {
        /// Index of its first descriptor.
        head: u16,
    },
    /// The chain is broken.
    #[error("the chain at descriptor {head} is broken")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        source: ChainError,
    },
    /// The device returned a chain that it does not have: its own mistake.
    #[error("the chain at descriptor {head} was returned but is not in use")]
    NotInFlight {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A ring cannot be accessed. Does not happen: it was checked when the queue was made.
    #[error("the rings cannot be accessed")]
    Ring(#[from] AccessError),
}

/// An element of the used ring.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct UsedElement {
    head: u32,
    len: u32,
}

/// The device's side of a split virtqueue.
///
/// Takes chains out with [`pop`](Self::pop), in the order in which the driver made them
/// available, and returns them with [`add_used`](Self::add_used) in any order. What is in
/// between is remembered, and a head cannot be taken out twice.
///
/// A device drains its queue like this, and so loses no kick and takes as few as possible:
///
/// ```
/// # use coracle_virtio::{Chain, Interrupt, Queue, QueueError};
/// fn drain(queue: &mut Queue, chain: &mut Chain, interrupt: &Interrupt) -> Result<(), QueueError> {
///     loop {
///         queue.disable_kicks()?;
///         while queue.pop(chain)? {
///             let written = 0; // the device's work on `chain`
///             queue.add_used(chain.head(), written)?;
///         }
///         if queue.needs_interrupt() {
///             interrupt.used_buffers();
///         }
///         if !queue.enable_kicks()? {
///             return Ok(());
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Queue {
    memory: GuestMemory,
    addresses: QueueAddresses,
    desc_table: OwnedSlice,
    avail_ring: OwnedSlice,
    used_ring: OwnedSlice,
    event_idx: bool,
    indirect: bool,
    /// Index of the next chain to take; wraps at 2^16, as all indices do.
    next_avail: u16,
    /// The driver's index when last read: what is before it can be taken without reading again.
    known_avail: u16,
    next_used: u16,
    /// How many chains were returned since the driver's wish for interrupts was last asked.
    unsignalled: u32,
    in_flight: Heads,
}

impl Queue {
    /// The queue that the driver has put at `addresses`, at its start: nothing was taken yet.
    /// Of `features`, the bits for indirect tables and EVENT_IDX matter.
    ///
    /// # Errors
    ///
    /// [`QueueSetupError`], if the size is not allowed, an address is not aligned, or a part
    /// of the queue is not in one region of guest memory.
    pub fn new(
        memory: GuestMemory,
        addresses: QueueAddresses,
        features: u64,
    ) -> Result<Self, QueueSetupError> {
        let QueueAddresses {
            size,
            desc_table,
            avail_ring,
            used_ring,
        } = addresses;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueSetupError::Size(size));
        }
        let count = usize::from(size);
        // The two bytes at the end of each ring belong to EVENT_IDX, and drivers make room for
        // them in any case.
        let avail_len = ELEMENTS + AVAIL_ELEMENT * count + 2;
        let used_len = ELEMENTS + USED_ELEMENT * count + 2;
        let table_len = Descriptor::SIZE * count;
        Ok(Self {
            desc_table: place(
                &memory,
                RingPart::DescriptorTable,
                desc_table,
                16,
                table_len,
            )?,
            avail_ring: place(&memory, RingPart::AvailableRing, avail_ring, 2, avail_len)?,
            used_ring: place(&memory, RingPart::UsedRing, used_ring, 4, used_len)?,
            memory,
            addresses,
            event_idx: features & features::RING_EVENT_IDX != 0,
            indirect: features & features::RING_INDIRECT_DESC != 0,
            next_avail: 0,
            known_avail: 0,
            next_used: 0,
            unsignalled: 0,
            in_flight: Heads::new(size),
        })
    }

    /// Number of descriptors.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.addresses.size
    }

    /// Where the descriptor table is.
    #[must_use]
    pub const fn desc_table(&self) -> GuestAddress {
        self.addresses.desc_table
    }

    /// Where the available ring is.
    #[must_use]
    pub const fn avail_ring(&self) -> GuestAddress {
        self.addresses.avail_ring
    }

    /// Where the used ring is.
    #[must_use]
    pub const fn used_ring(&self) -> GuestAddress {
        self.addresses.used_ring
    }

    /// How many chains the device has taken and not returned.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.in_flight.count
    }

    /// Takes the next chain that the driver made available into `chain`. `false`: there is none.
    ///
    /// # Errors
    ///
    /// [`QueueError`], if the driver broke the ring or the chain; `chain` is then empty, and
    /// the queue stays where it was.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.next_avail == self.known_avail && !self.look_for_more()? {
            return Ok(false);
        }
        let slot = usize::from(self.next_avail % self.size());
        let head = self
            .avail()
            .load_u16(ELEMENTS + AVAIL_ELEMENT * slot, Ordering::Relaxed)?;
        if self.in_flight.contains(head) {
            return Err(QueueError::InFlight { head });
        }
        walk_table(
            &self.memory,
            self.desc_table.as_slice(),
            self.addresses.size,
            head,
            self.indirect,
            chain,
        )
        .map_err(|source| QueueError::Chain { head, source })?;
        self.in_flight.insert(head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Returns the chain with this head to the driver, with `len` bytes written to it.
    ///
    /// # Errors
    ///
    /// [`QueueError::NotInFlight`], if it was not taken, or returned before.
    pub fn add_used(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        self.add_used_together([(head, len)])
    }

    /// Returns several chains, each by its head and the bytes written to it, in this order and at
    /// once: the driver sees all of them or none. For devices that put one thing into several
    /// chains, as a network device does with a packet.
    ///
    /// # Errors
    ///
    /// [`QueueError::NotInFlight`], if one was not taken, or returned before; the driver then sees
    /// none of them.
    pub fn add_used_together(
        &mut self,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        let used = self.used_ring.as_slice();
        let mut next_used = self.next_used;
        let mut returned = 0u32;
        for (head, len) in chains {
            if !self.in_flight.remove(head) {
                return Err(QueueError::NotInFlight { head });
            }
            let slot = usize::from(next_used % self.addresses.size);
            let element = UsedElement {
                head: head.into(),
                len,
            };
            used.write_obj(ELEMENTS + USED_ELEMENT * slot, &element)?;
            next_used = next_used.wrapping_add(1);
            returned = returned.saturating_add(1);
        }
        self.next_used = next_used;
        self.unsignalled = self.unsignalled.saturating_add(returned);
        // Release: a driver that sees the index sees the elements, and what is in the buffers.
        used.store_u16(INDEX, next_used, Ordering::Release)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the chains returned since the last question.
    /// Ask once for a batch: it costs a memory barrier.
    pub fn needs_interrupt(&mut self) -> bool {
        if self.unsignalled == 0 {
            return false;
        }
        // The driver writes its wish and then looks at the index; we write the index and then
        // look at its wish. Without a barrier between, both may miss.
        fence(Ordering::SeqCst);
        let returned = std::mem::take(&mut self.unsignalled);
        let avail = self.avail();
        if self.event_idx {
            let offset = ELEMENTS + AVAIL_ELEMENT * usize::from(self.size());
            match (
                u16::try_from(returned),
                avail.load_u16(offset, Ordering::Relaxed),
            ) {
                (Ok(returned), Ok(event)) => is_event_passed(event, self.next_used, returned),
                // So many that the indices have lapped each other: an interrupt is never wrong.
                _ => true,
            }
        } else {
            let flags = avail.load_u16(FLAGS, Ordering::Relaxed);
            flags.map_or(true, |flags| flags & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver for a kick when it makes the next chain available. `true`: it has done
    /// so meanwhile, so look again, for there may be no kick for it.
    ///
    /// # Errors
    ///
    /// [`QueueError::AvailableIndex`], if the driver broke the ring.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        let used = self.used_ring.as_slice();
        if self.event_idx {
            let offset = ELEMENTS + USED_ELEMENT * usize::from(self.size());
            used.store_u16(offset, self.next_avail, Ordering::Relaxed)?;
        } else {
            used.store_u16(FLAGS, 0, Ordering::Relaxed)?;
        }
        // As in `needs_interrupt`, with the parts exchanged.
        fence(Ordering::SeqCst);
        if self.next_avail != self.known_avail {
            return Ok(true);
        }
        self.look_for_more()
    }

    /// Tells the driver that kicks are of no use for now. It may kick all the same.
    ///
    /// # Errors
    ///
    /// None in practice: the rings were checked when the queue was made.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        // With EVENT_IDX the driver kicks for the one index that it was told last, so there is
        // nothing to take back.
        if !self.event_idx {
            self.used_ring
                .as_slice()
                .store_u16(FLAGS, USED_NO_NOTIFY, Ordering::Relaxed)?;
        }
        Ok(())
    }

    /// Reads the driver's index again: whether chains are available.
    fn look_for_more(&mut self) -> Result<bool, QueueError> {
        // Acquire: the elements and descriptors are read after the index that announces them.
        let index = self.avail().load_u16(INDEX, Ordering::Acquire)?;
        let size = self.size();
        if index.wrapping_sub(self.next_avail) > size {
            return Err(QueueError::AvailableIndex {
                index,
                ours: self.next_avail,
                size,
            });
        }
        self.known_avail = index;
        Ok(index != self.next_avail)
    }

    fn avail(&self) -> GuestSlice<'_> {
        self.avail_ring.as_slice()
    }
}

/// Checks where a part of a queue is.
fn place(
    memory: &GuestMemory,
    part: RingPart,
    address: GuestAddress,
    alignment: u64,
    len: usize,
) -> Result<OwnedSlice, QueueSetupError> {
    if !address.is_aligned_to(alignment) {
        return Err(QueueSetupError::Misaligned {
            part,
            address,
            alignment,
        });
    }
    memory
        .owned_slice(address, len)
        .map_err(|source| QueueSetupError::Memory {
            part,
            address,
            source,
        })
}

/// Whether the last `added` steps of an index, which is `index` now, went past `event`
/// (`vring_need_event` of section 2.7.10.1).
const fn is_event_passed(event: u16, index: u16, added: u16) -> bool {
    index.wrapping_sub(event).wrapping_sub(1) < added
}

/// A set of heads, as bits.
#[derive(Debug)]
struct Heads {
    words: Vec<u64>,
    count: u16,
}

impl Heads {
    fn new(size: u16) -> Self {
        Self {
            words: vec![0; usize::from(size).div_ceil(64)],
            count: 0,
        }
    }

    fn contains(&self, head: u16) -> bool {
        let (word, bit) = Self::place(head);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// `head` must be below the size and not in the set.
    fn insert(&mut self, head: u16) {
        let (word, bit) = Self::place(head);
        if let Some(bits) = self.words.get_mut(word) {
            *bits |= bit;
            self.count += 1;
        }
    }

    /// Whether it was in the set.
    fn remove(&mut self, head: u16) -> bool {
        if !self.contains(head) {
            return false;
        }
        let (word, bit) = Self::place(head);
        self.words[word] &= !bit;
        self.count -= 1;
        true
    }

    const fn place(head: u16) -> (usize, u64) {
        (head as usize / 64, 1 << (head % 64))
    }
}
