// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets for the driver: the chains that it gave for them, taken before it is known how long the
//! next packet is.
//!
//! One read of the tap takes one packet, and cuts it if there is too little room. So with mergeable
//! buffers as many chains are taken as the longest packet needs, and those that are left over are
//! for the next one. A driver that has not given so much gets its short packets all the same: what
//! of a long one finds no room goes to a buffer of ours, and follows when there are chains for it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use coracle_virtio::{Chain, Queue, QueueError};
use thiserror::Error;

use super::header::{HEADER_LEN, Header, MAX_PACKET, MIN_PACKET, Offloads};
use super::ranges::{Ranges, range};

/// Chains are taken until they have this many buffers, however short these are. With the buffers of
/// the last one there are fewer than the 1024 that a system call takes.
const ENOUGH_BUFFERS: usize = 256;

/// What a driver does wrong with its receive buffers.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The ring or a chain is broken.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A buffer that no packet can begin in (section 5.1.6.3.1).
    #[error("the receive buffer at descriptor {head} has {len} bytes, fewer than a header")]
    NoRoom {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Its device-writable bytes.
        len: u32,
    },
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The driver has it.
    Delivered,
    /// It waits for more buffers.
    Waiting,
    /// It is lost: too long for the driver's buffers, or not what was agreed on.
    Dropped,
}

/// The chains that are taken for packets to come.
pub struct Receiver {
    mergeable: bool,
    offloads: Offloads,
    held: VecDeque<Held>,
    /// Bytes in the chains that are held.
    room: usize,
    /// Where these bytes are; behind them there may be the spill.
    ranges: Ranges,
    /// How many ranges are the chains'.
    chain_ranges: usize,
    header: Header,
    spill: Box<[u8]>,
    waiting: Option<Waiting>,
    /// Chains to be filled again.
    spare: Vec<Chain>,
}

/// A chain that was taken.
struct Held {
    chain: Chain,
    /// Bytes of it that are used: no packet needs more.
    room: usize,
    ranges: usize,
}

/// A packet that has not got enough room.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Its bytes, header included.
    len: usize,
    /// How many of them are in place.
    placed: usize,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("chains", &self.held.len())
            .field("room", &self.room)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// For a driver that takes `offloads`, and packets in several buffers if `mergeable`.
    #[must_use]
    pub fn new(offloads: Offloads, mergeable: bool) -> Self {
        Self {
            mergeable,
            offloads,
            held: VecDeque::new(),
            room: 0,
            ranges: Ranges::new(),
            chain_ranges: 0,
            header: Header::default(),
            // One byte more than any packet, so that none is cut unseen.
            spill: vec![0; MAX_PACKET + 1].into_boxed_slice(),
            waiting: None,
            spare: Vec::new(),
        }
    }

    /// Changes what the driver takes, from the next delivery on: a packet that waits for more buffers is lost if it is
    /// not taken any more.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
        self.waiting = self.waiting.filter(|_| self.header.is_within(offloads));
    }

    /// Takes chains for the next packet out of `queue`, and delivers a packet that waits for them.
    /// Afterwards there is [`room`](Self::room) for a packet, unless the driver has given none.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`], if the driver broke its ring or a chain, or gave a buffer without use.
    pub fn refill(&mut self, queue: &mut Queue) -> Result<(), ReceiveError> {
        self.take_chains(queue)?;
        if let Some(waiting) = self.waiting
            && self.deliver_waiting(queue, waiting)? == Received::Delivered
        {
            self.take_chains(queue)?;
        }
        Ok(())
    }

    /// Where the next packet can be read to; `None` before the driver has given more buffers.
    pub fn room(&mut self) -> Option<Room<'_>> {
        if self.held.is_empty() || self.waiting.is_some() {
            return None;
        }
        self.ranges.truncate(self.chain_ranges);
        self.ranges.extend(&[range(&mut self.spill)]);
        Some(Room {
            ranges: self.ranges.with_header(&mut self.header),
        })
    }

    /// A packet of `len` bytes, header included, was read to [`room`](Self::room): gives it to the
    /// driver, in as many chains as it takes.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`], if the driver broke its ring.
    pub fn received(&mut self, queue: &mut Queue, len: usize) -> Result<Received, ReceiveError> {
        let is_possible = (MIN_PACKET..=MAX_PACKET).contains(&len);
        if !is_possible || self.held.is_empty() || !self.header.is_within(self.offloads) {
            return Ok(Received::Dropped);
        }
        if len <= self.room {
            return self.deliver(queue, len);
        }
        if !self.mergeable {
            return Ok(Received::Dropped);
        }
        let waiting = Waiting {
            len,
            placed: self.room,
        };
        self.waiting = Some(waiting);
        self.deliver_waiting(queue, waiting)
    }

    const fn has_enough(&self) -> bool {
        if self.mergeable {
            self.room >= MAX_PACKET || self.chain_ranges >= ENOUGH_BUFFERS
        } else {
            self.room > 0
        }
    }

    fn take_chains(&mut self, queue: &mut Queue) -> Result<(), ReceiveError> {
        while !self.has_enough() {
            let mut chain = self.spare.pop().unwrap_or_default();
            if !queue.pop(&mut chain)? {
                self.spare.push(chain);
                return Ok(());
            }
            self.hold(chain)?;
        }
        Ok(())
    }

    fn hold(&mut self, chain: Chain) -> Result<(), ReceiveError> {
        let mut writer = chain.writable();
        let room = writer.remaining().min(MAX_PACKET);
        if room < HEADER_LEN {
            let (head, len) = (chain.head(), chain.writable_len());
            return Err(ReceiveError::NoRoom { head, len });
        }
        let ranges = writer.iovecs(room);
        let count = ranges.len();
        self.ranges.truncate(self.chain_ranges);
        self.ranges.extend(ranges);
        drop(writer);
        if self.held.is_empty() {
            self.ranges.cut_header();
        }
        self.chain_ranges += count;
        self.room += room;
        self.held.push_back(Held {
            chain,
            room,
            ranges: count,
        });
        Ok(())
    }

    fn deliver_waiting(
        &mut self,
        queue: &mut Queue,
        Waiting { len, placed }: Waiting,
    ) -> Result<Received, ReceiveError> {
        if len > self.room {
            // A driver that can give no more will never have room for it.
            if self.has_enough() || self.chain_ranges >= usize::from(queue.size()) {
                self.waiting = None;
                return Ok(Received::Dropped);
            }
            return Ok(Received::Waiting);
        }
        self.waiting = None;
        let mut rest = &self.spill[..len - placed];
        let mut start = 0;
        for held in &self.held {
            let end = start + held.room;
            if end > placed && !rest.is_empty() {
                let mut writer = held.chain.writable();
                // In the chain: it ends behind what is in place.
                let _ = writer.skip(placed.saturating_sub(start));
                let part = rest.len().min(end - start.max(placed));
                rest = &rest[writer.write(&rest[..part])..];
            }
            start = end;
        }
        self.deliver(queue, len)
    }

    /// Returns the first chains, which hold a packet of `len` bytes but for its header.
    fn deliver(&mut self, queue: &mut Queue, len: usize) -> Result<Received, ReceiveError> {
        let mut count = 0;
        let mut end = 0;
        let mut ranges = 0;
        for held in &self.held {
            count += 1;
            end += held.room;
            ranges += held.ranges;
            if end >= len {
                break;
            }
        }
        // No more than there are descriptors.
        let buffers = u16::try_from(count).unwrap_or(u16::MAX);
        self.header.make_incoming(self.offloads, buffers);
        if let Some(first) = self.held.front() {
            // There is room for it, or the chain would not be held.
            let _ = first.chain.writable().write_all(&self.header.0);
        }

        let mut left = len;
        let used = self.held.iter().take(count).map(|held| {
            let written = left.min(held.room);
            left -= written;
            // A room is at most MAX_PACKET.
            (
                held.chain.head(),
                u32::try_from(written).unwrap_or(u32::MAX),
            )
        });
        queue.add_used_together(used)?;

        self.room -= end;
        self.chain_ranges -= ranges;
        self.ranges.remove(ranges);
        self.spare
            .extend(self.held.drain(..count).map(|held| held.chain));
        if !self.held.is_empty() {
            self.ranges.cut_header();
        }
        Ok(Received::Delivered)
    }
}

/// Room for one packet, header first. The buffers stay mapped as long as it is there.
#[derive(Debug)]
pub struct Room<'r> {
    ranges: &'r [libc::iovec],
}

impl Room<'_> {
    /// Reads one packet from `file`, in one system call, and says how long it is.
    ///
    /// # Errors
    ///
    /// As for `readv(2)`, and then there is no packet.
    pub fn read_from(self, file: impl AsFd) -> io::Result<usize> {
        // Far fewer than 1024.
        let count = libc::c_int::try_from(self.ranges.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: header and spill are the receiver's, which is borrowed; the chains that it holds
        // keep the memory of the other ranges mapped, and no reference to that exists.
        let done = unsafe { libc::readv(file.as_fd().as_raw_fd(), self.ranges.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;
    use coracle_virtio::testing::{Driver, memory};
    use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor};
    use proptest::collection::vec as any_vec;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::header::NEEDS_CSUM;
    use super::super::testing::{HEADER, link};
    use super::*;

    const QUEUE_SIZE: u16 = 16;
    const MEMORY: u64 = 4 << 20;

    /// A driver that gives buffers, and a device that receives into them.
    struct Guest {
        driver: Driver,
        queue: Queue,
        receiver: Receiver,
    }

    impl Guest {
        fn new(mergeable: bool) -> Self {
            let driver = Driver::new(
                &memory(MEMORY),
                GuestAddress(0),
                MEMORY as usize,
                QUEUE_SIZE,
            )
            .unwrap();
            Self {
                queue: driver.queue(0).unwrap(),
                receiver: Receiver::new(Offloads::default(), mergeable),
                driver,
            }
        }

        /// Gives a chain for each list of buffers.
        fn give(&mut self, chains: Vec<Vec<u32>>) {
            for buffers in chains {
                self.driver.add(&[], &buffers).unwrap();
            }
        }

        /// Lets the device receive a packet; `None` if it has no room for one.
        fn receive(&mut self, packet: &[u8]) -> Option<Received> {
            self.receiver.refill(&mut self.queue).unwrap();
            let (ours, theirs) = link();
            rustix::io::write(theirs, packet).unwrap();
            let len = self.receiver.room()?.read_from(ours).unwrap();
            Some(self.receiver.received(&mut self.queue, len).unwrap())
        }

        /// What the device has used: the contents of each chain.
        fn used(&mut self) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.driver.used().unwrap())
                .map(|used| used.data)
                .collect()
        }
    }

    /// A packet of `len` bytes, and the same with its number of buffers as the driver sees it.
    fn packet(len: usize, buffers: u16) -> (Vec<u8>, Vec<u8>) {
        let frame = (HEADER_LEN..len).map(|at| (at % 251) as u8);
        let sent: Vec<u8> = HEADER.into_iter().chain(frame).collect();
        let mut seen = sent.clone();
        seen[10..12].copy_from_slice(&buffers.to_le_bytes());
        (sent, seen)
    }

    #[rstest]
    #[case::one_buffer(vec![vec![1526]], &[100])]
    #[case::one_buffer_filled(vec![vec![100]], &[100])]
    #[case::header_of_its_own(vec![vec![12, 1514]], &[12 + 88])]
    #[case::header_split(vec![vec![1, 5, 7, 200]], &[100])]
    #[case::two_chains(vec![vec![60], vec![60]], &[60, 40])]
    #[case::two_chains_filled(vec![vec![60], vec![40]], &[60, 40])]
    #[case::chain_that_holds_a_header_alone(vec![vec![12], vec![200]], &[12, 88])]
    #[case::chains_of_several_buffers(vec![vec![12, 10], vec![20, 20], vec![38, 1]], &[22, 40, 38])]
    #[case::many_chains(vec![vec![12]; 9], &[12, 12, 12, 12, 12, 12, 12, 12, 4])]
    #[case::more_than_it_takes(vec![vec![60], vec![60], vec![60]], &[60, 40])]
    fn packet_is_in_as_many_chains_as_it_takes(
        #[case] chains: Vec<Vec<u32>>,
        #[case] expected: &[usize],
    ) {
        let mut guest = Guest::new(true);
        guest.give(chains);
        let (sent, seen) = packet(100, u16::try_from(expected.len()).unwrap());

        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        let used = guest.used();
        assert_eq!(used.iter().map(Vec::len).collect::<Vec<_>>(), expected);
        assert_eq!(used.concat(), seen);
    }

    #[rstest]
    #[case::still_agreed_on(true, Received::Delivered)]
    #[case::not_any_more(false, Received::Dropped)]
    fn waiting_packet_is_delivered_if_the_driver_still_takes_it(
        #[case] checksum: bool,
        #[case] expected: Received,
    ) {
        let mut guest = Guest::new(true);
        let checksums = |checksum| Offloads {
            checksum,
            ..Offloads::default()
        };
        guest.receiver.set_offloads(checksums(true));
        guest.give(vec![vec![60]]);
        let (mut sent, _) = packet(100, 0);
        sent[..2].copy_from_slice(&[NEEDS_CSUM, 0]);
        assert_eq!(guest.receive(&sent), Some(Received::Waiting));

        guest.receiver.set_offloads(checksums(checksum));
        guest.give(vec![vec![60]]);
        guest.receiver.refill(&mut guest.queue).unwrap();

        let is_delivered = !guest.used().is_empty();
        assert_eq!(is_delivered, expected == Received::Delivered);
        assert!(guest.receiver.room().is_some() || is_delivered);
    }

    #[rstest]
    #[case::shortest(MIN_PACKET)]
    #[case::longest(MAX_PACKET)]
    fn packet_of_any_length_is_in_one_chain(#[case] len: usize) {
        let mut guest = Guest::new(false);
        guest.give(vec![vec![66_000]]);
        let (sent, seen) = packet(len, 1);

        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        assert_eq!(guest.used(), [seen]);
    }

    #[test]
    fn chain_longer_than_any_packet_is_used_for_one() {
        let mut guest = Guest::new(true);
        guest.give(vec![vec![50, 500_000], vec![500_000]]);
        let (sent, seen) = packet(MAX_PACKET, 1);

        assert_eq!(guest.receive(&sent), Some(Received::Delivered));
        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        assert_eq!(guest.used(), [seen.clone(), seen]);
    }

    #[test]
    fn packets_follow_each_other_without_a_gap() {
        let mut guest = Guest::new(true);
        guest.give(vec![vec![64]; 16]);
        let (short, short_seen) = packet(40, 1);
        let (long, long_seen) = packet(150, 3);

        let received: Vec<_> = [&short, &long, &short, &long]
            .map(|packet| guest.receive(packet).unwrap())
            .to_vec();

        assert_eq!(received, [Received::Delivered; 4]);
        let used = guest.used();
        assert_eq!(used[0], short_seen);
        assert_eq!(used[1..4].concat(), long_seen);
        assert_eq!(used[4], short_seen);
        assert_eq!(used[5..].concat(), long_seen);
    }

    #[test]
    fn there_is_no_room_before_the_driver_gives_some() {
        let mut guest = Guest::new(true);
        assert_eq!(guest.receive(&packet(100, 1).0), None);

        guest.give(vec![vec![1526]]);

        assert_eq!(guest.receive(&packet(100, 1).0), Some(Received::Delivered));
    }

    #[rstest]
    #[case::many_too_few(vec![vec![500]], 3)]
    #[case::a_byte_too_few(vec![vec![1000], vec![999]], 3)]
    fn packet_without_enough_room_waits_for_it(
        #[case] chains: Vec<Vec<u32>>,
        #[case] buffers: u16,
    ) {
        let mut guest = Guest::new(true);
        guest.give(chains);
        let (sent, seen) = packet(2000, buffers);

        assert_eq!(guest.receive(&sent), Some(Received::Waiting));
        assert_eq!(guest.receive(&sent), None);
        assert!(guest.used().is_empty());
        guest.give(vec![vec![1000], vec![30, 1000]]);
        guest.receiver.refill(&mut guest.queue).unwrap();

        let used = guest.used().concat();
        assert_eq!(used[12..], seen[12..]);
    }

    #[test]
    fn room_left_behind_a_packet_that_waited_is_for_the_next() {
        let mut guest = Guest::new(true);
        guest.give(vec![vec![64]]);
        let (long, long_seen) = packet(150, 3);
        let (short, short_seen) = packet(40, 1);

        assert_eq!(guest.receive(&long), Some(Received::Waiting));
        guest.give(vec![vec![64], vec![64], vec![64]]);
        assert_eq!(guest.receive(&short), Some(Received::Delivered));

        let used = guest.used();
        assert_eq!(used[..3].concat(), long_seen);
        assert_eq!(used[3], short_seen);
    }

    #[test]
    fn packet_that_can_never_have_room_is_dropped() {
        let mut guest = Guest::new(true);
        guest.give(vec![vec![64]; QUEUE_SIZE as usize]);
        let (sent, seen) = packet(40, 1);

        assert_eq!(
            guest.receive(&packet(64 * 16 + 1, 1).0),
            Some(Received::Dropped)
        );
        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        assert_eq!(guest.used(), [seen]);
    }

    #[test]
    fn packet_too_long_for_the_one_buffer_is_dropped() {
        let mut guest = Guest::new(false);
        guest.give(vec![vec![100], vec![100]]);
        let (sent, seen) = packet(100, 1);

        assert_eq!(guest.receive(&packet(101, 1).0), Some(Received::Dropped));
        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        assert_eq!(guest.used(), [seen]);
    }

    #[rstest]
    #[case::shorter_than_its_headers(packet(MIN_PACKET - 1, 1).0)]
    #[case::longer_than_any(packet(MAX_PACKET + 1, 1).0)]
    #[case::checksum_not_agreed([&[1], &packet(100, 1).0[1..]].concat())]
    #[case::segmentation_not_agreed([&[0, 1], &packet(100, 1).0[2..]].concat())]
    fn packet_that_the_driver_cannot_take_is_dropped(#[case] wrong: Vec<u8>) {
        let mut guest = Guest::new(true);
        guest.give(vec![vec![66_000]]);
        let (sent, seen) = packet(100, 1);

        assert_eq!(guest.receive(&wrong), Some(Received::Dropped));
        assert_eq!(guest.receive(&sent), Some(Received::Delivered));

        assert_eq!(guest.used(), [seen]);
    }

    #[rstest]
    #[case::nothing_to_write(&[&b"readable"[..]], &[])]
    #[case::less_than_a_header(&[], &[11])]
    fn buffer_without_use_is_an_error(#[case] readable: &[&[u8]], #[case] writable: &[u32]) {
        let mut guest = Guest::new(true);
        guest.driver.add(readable, writable).unwrap();

        let error = guest.receiver.refill(&mut guest.queue).unwrap_err();

        assert!(matches!(error, ReceiveError::NoRoom { head: 0, .. }));
    }

    #[test]
    fn chain_given_again_while_it_is_held_is_an_error() {
        let mut guest = Guest::new(true);
        let head = guest.driver.add(&[], &[100]).unwrap();
        guest.driver.publish(head).unwrap();

        let error = guest.receiver.refill(&mut guest.queue).unwrap_err();

        assert!(matches!(
            error,
            ReceiveError::Queue(QueueError::InFlight { head: 0 })
        ));
    }

    #[test]
    fn buffers_that_are_one_another_hold_what_the_kernel_wrote_last() {
        let mut guest = Guest::new(true);
        let same = Descriptor {
            address: 0x8000,
            len: 100,
            flags: DESC_WRITE | DESC_NEXT,
            next: 1,
        };
        guest.driver.put(0, same).unwrap();
        let last = Descriptor {
            flags: DESC_WRITE,
            ..same
        };
        guest.driver.put(1, last).unwrap();
        guest.driver.publish(0).unwrap();

        let received = guest.receive(&packet(200, 1).0);

        assert_eq!(received, Some(Received::Delivered));
    }

    /// The most buffers of a byte that one call may be given, with the last chain's.
    #[test]
    fn shortest_buffers_are_fewer_than_a_system_call_takes() {
        const SIZE: u16 = 1024;
        let memory = memory(MEMORY);
        let mut driver = Driver::new(&memory, GuestAddress(0), MEMORY as usize, SIZE).unwrap();
        let mut queue = driver.queue(0).unwrap();
        let mut receiver = Receiver::new(Offloads::default(), true);
        driver.add(&[], &[1; 255]).unwrap();
        driver.add(&[], &[1; 256]).unwrap();
        driver.add(&[], &[1; 256]).unwrap();
        let (sent, seen) = packet(500, 2);
        let (ours, theirs) = link();
        rustix::io::write(theirs, &sent).unwrap();

        receiver.refill(&mut queue).unwrap();
        let len = receiver.room().unwrap().read_from(ours).unwrap();
        let received = receiver.received(&mut queue, len).unwrap();

        assert_eq!(received, Received::Delivered);
        let used = std::iter::from_fn(|| driver.used().unwrap());
        assert_eq!(used.flat_map(|used| used.data).collect::<Vec<_>>(), seen);
    }

    proptest! {
        /// Whatever buffers the driver gives when: each packet arrives whole and in order, or not at
        /// all, and says how many chains it is in.
        #[test]
        fn packets_arrive_whole(
            rounds in any_vec((any_vec(any_vec(1u32..400, 1..4), 0..6), MIN_PACKET..2500), 1..30),
        ) {
            let mut guest = Guest::new(true);
            let mut expected = Vec::new();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for (round, (chains, len)) in rounds.iter().enumerate() {
                for buffers in chains {
                    let is_useful = buffers.iter().sum::<u32>() >= 12;
                    // The driver has no descriptors for more.
                    let _ = is_useful.then(|| guest.driver.add(&[], buffers));
                }
                let mut sent = packet(*len, 0).0;
                sent[12] = round as u8;
                match guest.receive(&sent) {
                    Some(Received::Delivered | Received::Waiting) => expected.push(sent),
                    Some(Received::Dropped) | None => {}
                }
                let mut used = guest.used().into_iter();
                while let Some(mut first) = used.next() {
                    let buffers = u16::from_le_bytes([first[10], first[11]]);
                    prop_assert!(buffers > 0);
                    first[10..12].fill(0);
                    for _ in 1..buffers {
                        first.extend(used.next().expect("all chains of a packet at once"));
                    }
                    seen.push(first);
                }
            }
            // One may wait when there are no more rounds, and one may have waited in vain.
            let arrived = seen.iter().filter(|packet| !expected.contains(packet)).count();
            prop_assert_eq!(arrived, 0);
            prop_assert!(seen.windows(2).all(|pair| pair[0][12] < pair[1][12]));
        }
    }
}
