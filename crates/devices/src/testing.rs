// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that drives one device, for the tests of this crate: no thread, no KVM.

use std::sync::Arc;

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, LocalWorkers, activate, interrupt, read_register};
use coracle_virtio::{
    Chain, DeviceStatus, Interrupt, MmioTransport, Register, VirtioDevice, features,
};

pub(crate) const QUEUE_SIZE: u16 = 8;
const REGION: u64 = 2 << 20;

/// Two regions that touch, so that a buffer can lie in both.
pub(crate) fn memory() -> GuestMemory {
    let regions = [(GuestAddress(0), REGION), (GuestAddress(REGION), REGION)];
    GuestMemory::anonymous(&regions).unwrap()
}

/// The end of the first region and the start of the second.
pub(crate) const SEAM: u64 = REGION;
/// An address past the memory's end.
pub(crate) const OUTSIDE: u64 = 2 * REGION;

/// A chain with these readable contents and these lengths of writable buffers.
pub(crate) fn chain(readable: &[&[u8]], writable: &[u32]) -> Chain {
    let mut driver = Driver::new(&memory(), GuestAddress(0), REGION as usize, 32).unwrap();
    driver.add(readable, writable).unwrap();
    let mut chain = Chain::new();
    assert!(driver.queue(0).unwrap().pop(&mut chain).unwrap());
    chain
}

/// What the writable part of a chain holds.
pub(crate) fn written(chain: &Chain, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writable = chain.writable();
    for range in writable.iovecs(len) {
        // SAFETY: the range lies in memory that the chain keeps mapped, and nothing else uses it
        // while the test looks.
        let part = unsafe { std::slice::from_raw_parts(range.iov_base.cast(), range.iov_len) };
        bytes.extend_from_slice(part);
    }
    bytes
}

/// A device with a driver for each of its queues.
pub(crate) struct Guest {
    pub(crate) transport: MmioTransport,
    pub(crate) queues: Vec<Driver>,
    workers: Arc<LocalWorkers>,
    interrupt: Interrupt,
}

impl Guest {
    /// A device that is not active yet, with queues laid out in memory.
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        let memory = memory();
        let count = device.queue_sizes().len() as u64;
        let room = 1 << 18;
        let queues = (0..count)
            .map(|index| {
                let start = GuestAddress(index * room);
                Driver::new(&memory, start, room as usize, QUEUE_SIZE).unwrap()
            })
            .collect();
        let workers = Arc::new(LocalWorkers::new());
        let interrupt = interrupt();
        let transport = MmioTransport::new(
            Box::new(device),
            memory,
            interrupt.clone(),
            Arc::clone(&workers) as Arc<_>,
        )
        .unwrap();
        Guest {
            transport,
            queues,
            workers,
            interrupt,
        }
    }

    /// As [`new`](Self::new), brought up by a driver that accepts all it knows.
    pub(crate) fn active(device: impl VirtioDevice + 'static) -> Self {
        let mut guest = Self::new(device);
        guest.activate();
        guest
    }

    /// Brings the device up, after a reset if need be, with empty queues.
    pub(crate) fn activate(&mut self) {
        for (index, driver) in (0u64..).zip(&mut self.queues) {
            let memory = driver.memory().clone();
            let room = 1 << 18;
            let start = GuestAddress(index * room);
            memory.write(start, &vec![0; room as usize]).unwrap();
            *driver = Driver::new(&memory, start, room as usize, QUEUE_SIZE).unwrap();
        }
        let addresses: Vec<_> = self.queues.iter().map(Driver::addresses).collect();
        let wanted = features::VERSION_1 | features::RING;
        activate(&mut self.transport, wanted, &addresses);
        // What is left of an earlier life.
        let _ = self.interrupt.line().read();
    }

    /// Kicks a queue, and lets the worker do what it does until it sleeps.
    pub(crate) fn kick(&mut self, queue: usize) {
        self.transport.kicks()[queue].write(1).unwrap();
        self.settle();
    }

    /// Lets the worker handle what is pending now, once.
    pub(crate) fn run_once(&self) {
        self.workers.run();
    }

    /// Lets the worker run until no event is pending; fails if that never comes.
    pub(crate) fn settle(&self) {
        let idle = (0..100).any(|_| self.workers.run() == 0);
        assert!(idle, "the worker spins");
    }

    pub(crate) fn needs_reset(&mut self) -> bool {
        let status = read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }

    /// Whether the device raised its interrupt since this was last asked.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.line().read().is_ok()
    }
}
