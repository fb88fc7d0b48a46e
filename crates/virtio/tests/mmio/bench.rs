// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that logs what happens to it, behind a transport, and a driver that is somewhere in its life.

use std::sync::{Arc, Mutex, MutexGuard};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{
    self, Driver, LocalWorkers, read_register, set_up_queue, write_register,
};
use coracle_virtio::{
    ActivateError, Active, DeviceType, Interrupt, MmioTransport, QueueAddresses, Register,
    VirtioDevice, Worker, features,
};
use event_manager::{EventOps, Events, MutEventSubscriber};

pub const OWN_FEATURE: u64 = 1 << 3;
pub const OFFERED: u64 = OWN_FEATURE | features::RING | features::VERSION_1;
pub const MEMORY: u64 = 1 << 20;
pub const MAX_SIZE: u16 = 16;

/// What happened to a device, for the test to look at.
#[derive(Debug, Default)]
pub struct Log {
    pub activations: Vec<(u64, Vec<u16>)>,
    pub resets: usize,
    /// How many workers were dropped, when the last reset came.
    pub dropped_before_reset: usize,
    pub dropped: usize,
    pub config: [u8; 8],
    pub refuses: bool,
    pub has_no_worker: bool,
    pub interrupt: Option<Interrupt>,
}

pub type SharedLog = Arc<Mutex<Log>>;

pub struct Probe {
    pub log: SharedLog,
    pub queue_sizes: Vec<u16>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        OWN_FEATURE | features::RING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let log = self.log.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let part = log.config.get(offset..offset + data.len()).unwrap_or(&[]);
        data[..part.len()].copy_from_slice(part);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.log.lock().unwrap().config[offset..offset + data.len()].copy_from_slice(data);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        let mut log = self.log.lock().unwrap();
        let queues = active.queues.iter().map(|queue| queue.index).collect();
        log.activations.push((active.features, queues));
        log.interrupt = Some(active.interrupt);
        if log.refuses {
            return Err(ActivateError::device("no"));
        }
        Ok((!log.has_no_worker).then(|| {
            let log = Arc::clone(&self.log);
            Box::new(ProbeWorker { log }) as Worker
        }))
    }

    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        log.resets += 1;
        log.dropped_before_reset = log.dropped;
    }
}

pub struct ProbeWorker {
    log: SharedLog,
}

impl MutEventSubscriber for ProbeWorker {
    fn process(&mut self, _: Events, _: &mut EventOps) {}
    fn init(&mut self, _: &mut EventOps) {}
}

impl Drop for ProbeWorker {
    fn drop(&mut self) {
        self.log.lock().unwrap().dropped += 1;
    }
}

pub struct Bench {
    pub transport: MmioTransport,
    pub memory: GuestMemory,
    pub workers: Arc<LocalWorkers>,
    pub log: SharedLog,
}

impl Bench {
    pub fn new() -> Self {
        let log = SharedLog::default();
        let memory = testing::memory(MEMORY);
        let workers = Arc::new(LocalWorkers::new());
        let device = Probe {
            log: Arc::clone(&log),
            queue_sizes: vec![MAX_SIZE, MAX_SIZE],
        };
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            testing::interrupt(),
            workers.clone(),
        )
        .unwrap();
        Self {
            transport,
            memory,
            workers,
            log,
        }
    }

    /// A bench whose driver has got as far as `state`.
    pub fn at(state: State) -> Self {
        let mut bench = Self::new();
        for step in state.steps() {
            step(&mut bench);
        }
        bench
    }

    pub fn read(&mut self, register: Register) -> u32 {
        read_register(&mut self.transport, register)
    }

    pub fn write(&mut self, register: Register, value: u32) {
        write_register(&mut self.transport, register, value);
    }

    pub fn accept(&mut self, accepted: u64) {
        self.write(Register::DriverFeaturesSel, 0);
        self.write(Register::DriverFeatures, (accepted & 0xffff_ffff) as u32);
        self.write(Register::DriverFeaturesSel, 1);
        self.write(Register::DriverFeatures, (accepted >> 32) as u32);
    }

    pub fn addresses(&self) -> QueueAddresses {
        Driver::new(&self.memory, GuestAddress(0x1000), 0x4000, MAX_SIZE)
            .unwrap()
            .addresses()
    }

    /// What has happened to the device.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// The interrupt that the device was activated with.
    pub fn interrupt(&self) -> Interrupt {
        self.log().interrupt.clone().unwrap()
    }

    /// All that the driver can change, and all that happened to the device.
    pub fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.transport, self.log())
    }
}

/// How far a driver has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Start,
    Acknowledged,
    Driver,
    FeaturesOk,
    QueueReady,
    Live,
    NeedsReset,
    Failed,
}

pub type StepFn = fn(&mut Bench);

impl State {
    pub const ALL: &[Self] = &[
        Self::Start,
        Self::Acknowledged,
        Self::Driver,
        Self::FeaturesOk,
        Self::QueueReady,
        Self::Live,
        Self::NeedsReset,
        Self::Failed,
    ];

    /// What a driver does to get there.
    fn steps(self) -> &'static [StepFn] {
        const ALL: [StepFn; 6] = [
            |bench| bench.write(Register::Status, 1),
            |bench| bench.write(Register::Status, 3),
            |bench| {
                bench.accept(OFFERED);
                bench.write(Register::Status, 11);
            },
            |bench| {
                let addresses = bench.addresses();
                set_up_queue(&mut bench.transport, 0, addresses);
            },
            |bench| bench.write(Register::Status, 15),
            |bench| bench.interrupt().needs_reset(),
        ];
        const FAIL: [StepFn; 1] = [|bench| bench.write(Register::Status, 128)];
        match self {
            Self::Start => &[],
            Self::Acknowledged => &ALL[..1],
            Self::Driver => &ALL[..2],
            Self::FeaturesOk => &ALL[..3],
            Self::QueueReady => &ALL[..4],
            Self::Live => &ALL[..5],
            Self::NeedsReset => &ALL[..6],
            Self::Failed => &FAIL,
        }
    }
}
