// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device sees of a virtual machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_devices::vhost_user::VhostUserDevice;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, LocalWorkers, Used, activate, interrupt, read_register};
use coracle_virtio::{DeviceStatus, Interrupt, MmioTransport, Register, features};
use vmm_sys_util::eventfd::EventFd;

/// Queues of the devices here.
pub const QUEUES: usize = 2;
/// The one that is used: requests of a file system, packets to transmit.
pub const QUEUE: usize = 1;
const REGION: u64 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A virtual machine reduced to what the device sees of it.
pub struct Guest {
    pub transport: MmioTransport,
    pub queues: Vec<Driver>,
    pub workers: Arc<LocalWorkers>,
    pub interrupt: Interrupt,
    pub lost: EventFd,
}

impl Guest {
    pub fn new(device: VhostUserDevice, memory: &GuestMemory) -> Self {
        let lost = device.connection_lost().unwrap();
        let workers = Arc::new(LocalWorkers::new());
        let interrupt = interrupt();
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt.clone(),
            Arc::clone(&workers) as Arc<_>,
        )
        .unwrap();
        Guest {
            transport,
            queues: drivers(memory),
            workers,
            interrupt,
            lost,
        }
    }

    pub fn activate(&mut self) {
        let addresses: Vec<_> = self.queues.iter().map(Driver::addresses).collect();
        let wanted = features::VERSION_1 | features::RING_INDIRECT_DESC;
        activate(&mut self.transport, wanted, &addresses);
    }

    pub fn request(&mut self, request: &[u8]) -> Used {
        let driver = &mut self.queues[QUEUE];
        driver.add(&[request], &[64]).unwrap();
        self.transport.kicks()[QUEUE].write(1).unwrap();
        eventually(|| driver.used().unwrap())
    }

    pub fn needs_reset(&mut self) -> bool {
        let status = read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }
}

/// A driver per queue, each in a region of its own, so that both regions have to be mapped.
pub fn drivers(memory: &GuestMemory) -> Vec<Driver> {
    memory
        .regions()
        .iter()
        .map(|region| {
            memory.write(region.start(), &[0; 0x1_0000]).unwrap();
            Driver::new(memory, region.start(), 0x1_0000, 16).unwrap()
        })
        .collect()
}

pub fn ranges() -> [(GuestAddress, u64); QUEUES] {
    [
        (GuestAddress(0), REGION),
        (GuestAddress(4 * REGION), REGION),
    ]
}

pub fn shared_memory() -> GuestMemory {
    GuestMemory::shared(&ranges()).unwrap()
}

/// What `attempt` gives in the end; fails after [`PATIENCE`].
pub fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "nothing within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
