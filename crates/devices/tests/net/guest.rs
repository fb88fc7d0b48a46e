// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of the network device, which runs the device's worker when a test says so.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_devices::net::{HEADER_LEN, Net};
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, LocalWorkers, activate, interrupt, memory, read_register};
use coracle_virtio::{DeviceStatus, Interrupt, MmioTransport, Register, features};

use crate::frames::GUEST;

/// For how long a packet is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const CONTROL: usize = 2;

/// Descriptors in the queue for control, and in the others unless a test says otherwise.
const CONTROL_SIZE: u16 = 64;
pub const QUEUE_SIZE: u16 = 256;

/// Bytes for each queue and its buffers.
const ROOM: u64 = 4 << 20;
/// An address past the memory's end.
pub const OUTSIDE: u64 = 3 * ROOM;

/// Feature bits (virtio 1.3, section 5.1.3).
pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const CTRL_VQ: u64 = 1 << 17;
pub const CTRL_RX: u64 = 1 << 18;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;

/// A header that leaves nothing to others.
pub const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// A packet as the driver received it.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub header: Vec<u8>,
    pub frame: Vec<u8>,
    pub buffers: u16,
}

pub struct Guest {
    pub transport: MmioTransport,
    pub queues: [Driver; 3],
    features: u64,
    size: u16,
    workers: Arc<LocalWorkers>,
    interrupt: Interrupt,
}

fn drivers(memory: &GuestMemory, size: u16) -> [Driver; 3] {
    [(0, size), (1, size), (2, CONTROL_SIZE)].map(|(index, size)| {
        let start = GuestAddress(index * ROOM);
        memory.write(start, &vec![0; 1 << 16]).unwrap();
        Driver::new(memory, start, ROOM as usize, size).unwrap()
    })
}

impl Guest {
    /// Brings a device over `tap` up.
    pub fn new(tap: OwnedFd, features: u64) -> Self {
        Self::with_queues(tap, features, QUEUE_SIZE)
    }

    /// As [`new`](Self::new), by a driver that knows nothing of a control queue.
    pub fn without_control(tap: OwnedFd) -> Self {
        let mut guest = Self::new(tap, 0);
        let memory = guest.queues[0].memory().clone();
        guest.queues = drivers(&memory, QUEUE_SIZE);
        let pair = [RECEIVE, TRANSMIT].map(|index| guest.queues[index].addresses());
        let status = activate(&mut guest.transport, guest.features, &pair);
        assert_eq!(status & DeviceStatus::NEEDS_RESET, 0);
        guest
    }

    /// As [`new`](Self::new), with queues for packets of `size` descriptors.
    pub fn with_queues(tap: OwnedFd, features: u64, size: u16) -> Self {
        let memory = memory(3 * ROOM);
        let workers = Arc::new(LocalWorkers::new());
        let interrupt = interrupt();
        let device = Net::new(tap, GUEST, Some(1500)).unwrap();
        let mut guest = Self {
            queues: drivers(&memory, size),
            transport: MmioTransport::new(
                Box::new(device),
                memory,
                interrupt.clone(),
                Arc::clone(&workers) as Arc<_>,
            )
            .unwrap(),
            features: features::VERSION_1 | features::RING | features,
            size,
            workers,
            interrupt,
        };
        guest.activate();
        guest
    }

    /// Resets the device, and brings it up with empty queues.
    pub fn activate(&mut self) {
        let memory = self.queues[0].memory().clone();
        self.queues = drivers(&memory, self.size);
        let addresses = self.queues.each_ref().map(Driver::addresses);
        let status = activate(&mut self.transport, self.features, &addresses);
        assert_eq!(status & DeviceStatus::NEEDS_RESET, 0);
        let _ = self.interrupt.line().read();
    }

    /// Kicks a queue, and lets the worker do what it does until it sleeps.
    pub fn kick(&self, queue: usize) {
        self.transport.kicks()[queue].write(1).unwrap();
        self.settle();
    }

    /// Lets the worker run until no event is pending; fails if that never comes.
    pub fn settle(&self) {
        let idle = (0..10_000).any(|_| self.workers.run() == 0);
        assert!(idle, "the worker spins");
    }

    /// Lets the worker have one turn for each event that is pending.
    pub fn run_once(&self) {
        self.workers.run();
    }

    /// Gives `count` receive buffers of `len` bytes.
    pub fn give(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            self.queues[RECEIVE].add(&[], &[len]).unwrap();
        }
        self.kick(RECEIVE);
    }

    /// Sends a packet in these buffers.
    pub fn send(&mut self, buffers: &[&[u8]]) {
        self.queues[TRANSMIT].add(buffers, &[]).unwrap();
        self.kick(TRANSMIT);
    }

    /// The next packet that has arrived.
    pub fn try_receive(&mut self) -> Option<Packet> {
        self.settle();
        let queue = &mut self.queues[RECEIVE];
        let mut header = queue.used().unwrap()?.data;
        let buffers = u16::from_le_bytes([header[10], header[11]]);
        for _ in 1..buffers {
            header.extend(queue.used().unwrap().unwrap().data);
        }
        let frame = header.split_off(HEADER_LEN);
        Some(Packet {
            header,
            frame,
            buffers,
        })
    }

    /// The next packet.
    pub fn receive(&mut self) -> Packet {
        let since = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(since.elapsed() < PATIENCE, "nothing comes from the host");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a command; the byte that answers it.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        let queue = &mut self.queues[CONTROL];
        queue.add(&[&command[..2], &command[2..]], &[1]).unwrap();
        self.kick(CONTROL);
        self.queues[CONTROL].used().unwrap().unwrap().data[0]
    }

    /// How many chains of a queue have come back since this was last asked.
    pub fn returned(&mut self, queue: usize) -> u16 {
        let used = std::iter::from_fn(|| self.queues[queue].used().unwrap());
        u16::try_from(used.count()).unwrap()
    }

    pub fn needs_reset(&mut self) -> bool {
        let status = read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }

    /// Whether the configuration says that the link is up.
    pub fn is_link_up(&mut self) -> bool {
        let mut status = [0; 2];
        self.transport
            .read(coracle_virtio::CONFIG_OFFSET + 6, &mut status);
        status == [1, 0]
    }

    /// Whether the device raised its interrupt since this was last asked.
    pub fn interrupted(&self) -> bool {
        self.interrupt.line().read().is_ok()
    }

    /// Whether the driver reads that the configuration has changed.
    pub fn is_config_changed(&mut self) -> bool {
        read_register(&mut self.transport, Register::InterruptStatus) & 2 != 0
    }
}
