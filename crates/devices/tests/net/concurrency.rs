// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Driver, worker and host on threads of their own: no packet, no kick and no interrupt between them may be lost.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use coracle_devices::net::{HEADER_LEN, Net};
use coracle_memory::GuestAddress;
use coracle_virtio::testing::{Driver, OneThread, activate, interrupt, memory};
use coracle_virtio::{
    DESC_WRITE, Descriptor, DeviceStatus, Interrupt, MmioTransport, VirtioDevice, features,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

use crate::frames::{GUEST, HOST, number, numbered};
use crate::guest::{MRG_RXBUF, RECEIVE, TRANSMIT};
use crate::host::{self, PLAIN};

const QUEUE_SIZE: u16 = 16;
const ROOM: u64 = 1 << 18;
/// Where the buffers are, one for each descriptor.
const BUFFERS: u64 = 4 * ROOM;
const BUFFER: u64 = 2048;

const PACKETS: u32 = 20_000;
/// Packets on their way to the guest: more than it has buffers, so that it often has none.
const WINDOW: u32 = 40;

/// After this long without progress, a kick or an interrupt was lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// One queue of a device that runs, with the same buffers again and again.
struct Queue {
    driver: Driver,
    kick: EventFd,
    interrupt: Interrupt,
    raised: PollContext<()>,
    event_idx: bool,
    published: u16,
    used: u16,
    _transport: MmioTransport,
}

impl Queue {
    fn new(tap: OwnedFd, index: usize, accepted: u64) -> Self {
        let memory = memory(8 * ROOM);
        let device = Net::new(tap, GUEST, None).unwrap();
        let mut drivers: Vec<_> = (0..device.queue_sizes().len() as u64)
            .map(|queue| {
                Driver::new(
                    &memory,
                    GuestAddress(queue * ROOM),
                    ROOM as usize,
                    QUEUE_SIZE,
                )
            })
            .collect::<Result<_, _>>()
            .unwrap();
        let addresses: Vec<_> = drivers.iter().map(Driver::addresses).collect();
        let interrupt = interrupt();
        let workers = Arc::new(OneThread::default());
        let mut transport =
            MmioTransport::new(Box::new(device), memory, interrupt.clone(), workers).unwrap();
        let status = activate(&mut transport, features::VERSION_1 | accepted, &addresses);
        assert_eq!(status & DeviceStatus::NEEDS_RESET, 0);
        let raised = PollContext::new().unwrap();
        raised.add(interrupt.line(), ()).unwrap();
        Self {
            driver: drivers.swap_remove(index),
            kick: transport.kicks()[index].try_clone().unwrap(),
            interrupt,
            raised,
            event_idx: accepted & features::RING_EVENT_IDX != 0,
            published: 0,
            used: 0,
            _transport: transport,
        }
    }

    fn buffer(head: u16) -> GuestAddress {
        GuestAddress(BUFFERS + BUFFER * u64::from(head))
    }

    fn describe(&mut self, head: u16, len: u32, flags: u16) {
        let descriptor = Descriptor {
            address: Self::buffer(head).0,
            len,
            flags,
            next: 0,
        };
        self.driver.put(head, descriptor).unwrap();
    }

    /// Makes a buffer available, and kicks if the device asks for it.
    fn publish(&mut self, head: u16) {
        self.driver.publish(head).unwrap();
        self.published = self.published.wrapping_add(1);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            self.published.wrapping_sub(1) == self.driver.avail_event().unwrap()
        } else {
            self.driver.used_flags().unwrap() == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// The next buffer that comes back, with the bytes written to it.
    fn take(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.driver.used().unwrap() {
                self.used = self.used.wrapping_add(1);
                return (u16::try_from(used.head).unwrap(), used.len);
            }
            self.sleep();
        }
    }

    /// How many buffers have come back, as the ring says.
    fn used_index(&self) -> u16 {
        let index = GuestAddress(self.driver.addresses().used_ring.0 + 2);
        let memory = self.driver.memory();
        memory.load_u16(index, Ordering::Acquire).unwrap()
    }

    /// Asks for an interrupt with the next buffer, and sleeps until it comes.
    fn sleep(&mut self) {
        self.driver.set_used_event(self.used).unwrap();
        fence(Ordering::SeqCst);
        if self.used_index() != self.used {
            return;
        }
        let ready = self.raised.wait_timeout(PATIENCE).unwrap().iter().count();
        assert_eq!(ready, 1, "a wake-up was lost");
        self.interrupt.line().read().unwrap();
    }
}

fn every_packet_reaches_the_guest() {
    for accepted in [
        0,
        features::RING_EVENT_IDX,
        features::RING_EVENT_IDX | MRG_RXBUF,
    ] {
        let (host, tap) = host::tap();
        let mut queue = Queue::new(tap, RECEIVE, accepted);
        for head in 0..QUEUE_SIZE {
            queue.describe(head, 1526, DESC_WRITE);
            queue.publish(head);
        }
        let mut sent = 0;
        for arrived in 0..PACKETS {
            while sent < PACKETS.min(arrived + WINDOW)
                && host.try_send(&PLAIN, &numbered(HOST, sent))
            {
                sent += 1;
            }
            let (head, len) = queue.take();
            let mut packet = vec![0; len as usize];
            let memory = queue.driver.memory();
            memory.read(Queue::buffer(head), &mut packet).unwrap();
            assert_eq!(number(&packet[HEADER_LEN..]), arrived);
            queue.publish(head);
        }
    }
}

/// A driver that sees a packet's first buffer sees the others: Linux drops the packet if it does not.
fn buffers_of_a_packet_are_seen_at_once() {
    const BUFFERS: u16 = 6;
    let (host, tap) = host::tap();
    let mut queue = Queue::new(tap, RECEIVE, features::RING_EVENT_IDX | MRG_RXBUF);
    for head in 0..QUEUE_SIZE {
        queue.describe(head, 12, DESC_WRITE);
        queue.publish(head);
    }
    for sent in 0..PACKETS {
        host.send(&PLAIN, &numbered(HOST, sent));
        let since = Instant::now();
        let index = loop {
            let index = queue.used_index();
            if index != queue.used {
                break index;
            }
            assert!(since.elapsed() < PATIENCE, "a wake-up was lost");
        };
        assert_eq!(index.wrapping_sub(queue.used), BUFFERS);
        for _ in 0..BUFFERS {
            let (head, len) = queue.take();
            assert_eq!(len, 12);
            queue.publish(head);
        }
    }
}

fn every_packet_reaches_the_host() {
    for accepted in [0, features::RING_EVENT_IDX] {
        let (host, tap) = host::tap();
        let mut queue = Queue::new(tap, TRANSMIT, accepted);
        let mut free: Vec<u16> = (0..QUEUE_SIZE).collect();
        for head in 0..QUEUE_SIZE {
            queue.describe(head, 12 + 60, 0);
        }
        let mut arrived = 0;
        for sent in 0..PACKETS {
            let head = free.pop().unwrap();
            let packet = [&[0; HEADER_LEN][..], &numbered(GUEST, sent)].concat();
            let memory = queue.driver.memory();
            memory.write(Queue::buffer(head), &packet).unwrap();
            queue.publish(head);
            if free.is_empty() {
                free.push(queue.take().0);
            }
            while let Some((_, frame)) = host.try_receive() {
                assert_eq!(number(&frame), arrived);
                arrived += 1;
            }
        }
        while arrived < PACKETS {
            assert_eq!(number(&host.receive().1), arrived);
            arrived += 1;
        }
    }
}

/// Devices come and go while the host sends.
fn reset_amid_traffic_ends_the_worker() {
    let (host, tap) = host::tap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            host.try_send(&PLAIN, &numbered(HOST, 0));
        }
    });

    for _ in 0..50 {
        let accepted = features::RING_EVENT_IDX | MRG_RXBUF;
        let mut queue = Queue::new(tap.try_clone().unwrap(), RECEIVE, accepted);
        for head in 0..QUEUE_SIZE {
            queue.describe(head, 1526, DESC_WRITE);
            queue.publish(head);
        }
        for _ in 0..100 {
            let (head, _) = queue.take();
            queue.publish(head);
        }
    }

    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

cases![
    buffers_of_a_packet_are_seen_at_once,
    every_packet_reaches_the_guest,
    every_packet_reaches_the_host,
    reset_amid_traffic_ends_the_worker,
];
