// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device sees of a virtual machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, LocalWorkers, activate, interrupt, read_register};
use coracle_virtio::{DeviceStatus, MmioTransport, Register, VirtioDevice, features};

const MEMORY: u64 = 4 << 20;
const ROOM: u64 = 1 << 20;
const QUEUE_SIZE: u16 = 128;
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Guest {
    transport: MmioTransport,
    memory: GuestMemory,
    pub queues: Vec<Driver>,
    pub workers: Arc<LocalWorkers>,
}

impl Guest {
    pub fn new(device: impl VirtioDevice + 'static, queues: u64) -> Self {
        let memory = GuestMemory::shared(&[(GuestAddress(0), MEMORY)]).unwrap();
        let workers = Arc::new(LocalWorkers::new());
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt(),
            Arc::clone(&workers) as Arc<_>,
        )
        .unwrap();
        Self {
            transport,
            queues: drivers(&memory, queues),
            memory,
            workers,
        }
    }

    /// Brings the device up, after a reset if need be, with empty queues.
    pub fn activate(&mut self) {
        self.queues = drivers(&self.memory, self.queues.len() as u64);
        let addresses: Vec<_> = self.queues.iter().map(Driver::addresses).collect();
        let wanted = features::VERSION_1 | features::RING_INDIRECT_DESC;
        activate(&mut self.transport, wanted, &addresses);
        assert!(!self.needs_reset());
    }

    pub fn kick(&self, queue: usize) {
        self.transport.kicks()[queue].write(1).unwrap();
    }

    /// Makes a request and gives its answer.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Vec<u8> {
        self.queues[queue].add(readable, writable).unwrap();
        self.kick(queue);
        eventually(|| {
            self.workers.run();
            self.queues[queue].used().unwrap()
        })
        .data
    }

    pub fn needs_reset(&mut self) -> bool {
        let status = read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }
}

fn drivers(memory: &GuestMemory, queues: u64) -> Vec<Driver> {
    (0..queues)
        .map(|queue| {
            let start = GuestAddress(queue * ROOM);
            memory.write(start, &[0; 0x2000]).unwrap();
            Driver::new(memory, start, ROOM as usize, QUEUE_SIZE).unwrap()
        })
        .collect()
}

/// What `attempt` gives in the end.
pub fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "nothing within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
