// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device behind the registers: the state machine between a driver and a [`VirtioDevice`].
//!
//! What the driver may write depends on how far it has got. A write out of turn, of the wrong
//! width or to nowhere has no effect but to be counted.

use std::io;
use std::sync::Arc;

use coracle_memory::{GuestAddress, GuestMemory};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::register::{CONFIG_OFFSET, MMIO_WINDOW_SIZE, Register};
use crate::device::{ActivateError, Active, ActiveQueue, VirtioDevice, WorkerId, Workers};
use crate::status::Step;
use crate::{DeviceStatus, Interrupt, MAX_QUEUE_SIZE, Queue, QueueAddresses, features};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version without the legacy interface.
const VERSION: u32 = 2;
/// "CRCL": nobody gives these numbers out, and no driver looks.
const VENDOR: u32 = 0x4c43_5243;
/// What the length of a shared memory region reads as when there is none.
const NO_REGION: u32 = u32::MAX;

/// How many failed activations are logged: a driver can repeat them for ever.
const LOGGED_FAILURES: u32 = 4;

/// Why a device cannot be put behind a transport.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The device asks for a queue of a size that no queue has.
    #[error(
        "queue {index} of the device has {size} descriptors: not a power of two up to {MAX_QUEUE_SIZE}"
    )]
    QueueSize {
        /// Index of the queue.
        index: usize,
        /// Its size.
        size: u16,
    },
    /// The device asks for more queues than have an index.
    #[error("the device has {0} queues, more than there are indices for")]
    TooManyQueues(usize),
    /// An eventfd for kicks could not be made.
    #[error("cannot make the kick descriptor of queue {index}")]
    Kick {
        /// Index of the queue.
        index: usize,
        /// The host's reason.
        source: io::Error,
    },
}

/// A virtio device as the guest sees it: a window of [`MMIO_WINDOW_SIZE`] bytes.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    workers: Arc<dyn Workers>,
    kicks: Vec<EventFd>,
    max_sizes: Vec<u16>,
    offered: u64,
    driver: Driver,
    worker: Option<WorkerId>,
    refused: u64,
    failures: u32,
}

/// All that the driver has written, forgotten at a reset.
#[derive(Debug, Default)]
struct Driver {
    status: DeviceStatus,
    offered_half: u32,
    accepted_half: u32,
    accepted: u64,
    queue: u32,
    queues: Vec<QueueSetup>,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueSetup {
    addresses: QueueAddresses,
    ready: bool,
}

impl Driver {
    fn new(queues: usize) -> Self {
        Self {
            queues: vec![QueueSetup::default(); queues],
            ..Self::default()
        }
    }
}

/// The driver may not do this, here or now.
struct Refused;

impl MmioTransport {
    /// Puts `device` behind a transport. Its queues will be in `memory`, its interrupts go
    /// through `interrupt`, and its worker runs on `workers`.
    ///
    /// # Errors
    ///
    /// [`TransportError`], if the device asks for impossible queues or the host is out of
    /// descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Interrupt,
        workers: Arc<dyn Workers>,
    ) -> Result<Self, TransportError> {
        let max_sizes = device.queue_sizes().to_vec();
        if max_sizes.len() > usize::from(u16::MAX) {
            return Err(TransportError::TooManyQueues(max_sizes.len()));
        }
        let mut kicks = Vec::with_capacity(max_sizes.len());
        for (index, &size) in max_sizes.iter().enumerate() {
            if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
                return Err(TransportError::QueueSize { index, size });
            }
            let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| TransportError::Kick { index, source })?;
            kicks.push(kick);
        }
        let offered = device.features() | features::VERSION_1;
        let driver = Driver::new(max_sizes.len());
        Ok(Self {
            device,
            memory,
            interrupt,
            workers,
            kicks,
            max_sizes,
            offered,
            driver,
            worker: None,
            refused: 0,
            failures: 0,
        })
    }

    /// For each queue, by index, the eventfd that kicks it: to be written by an ioeventfd on
    /// [`NOTIFY_OFFSET`](crate::NOTIFY_OFFSET) that matches the index in 32 bits. The transport
    /// writes to it as well, when a kick reaches it as a register access.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// How far the driver has got.
    #[must_use]
    pub fn status(&self) -> DeviceStatus {
        self.driver.status
    }

    /// The device behind the transport.
    #[must_use]
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// How many accesses had no effect, because of their width, place, time or value.
    #[must_use]
    pub const fn refused_accesses(&self) -> u64 {
        self.refused
    }

    /// The guest reads `data.len()` bytes at `offset` of the window. A read that is not
    /// allowed gives zeroes.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let done = match Access::of(offset, data.len()) {
            Some(Access::Register(register)) => self
                .read_register(register)
                .map(|value| data.copy_from_slice(&value.to_le_bytes())),
            Some(Access::Config(offset)) => {
                self.device.read_config(offset, data);
                Ok(())
            }
            None => Err(Refused),
        };
        self.count(done);
    }

    /// The guest writes `data` at `offset` of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let done = match (Access::of(offset, data.len()), <[u8; 4]>::try_from(data)) {
            (Some(Access::Register(register)), Ok(value)) => {
                self.write_register(register, u32::from_le_bytes(value))
            }
            (Some(Access::Config(offset)), _) => self.write_config(offset, data),
            _ => Err(Refused),
        };
        self.count(done);
    }

    fn count(&mut self, done: Result<(), Refused>) {
        if done.is_err() {
            self.refused = self.refused.wrapping_add(1);
        }
    }

    fn read_register(&self, register: Register) -> Result<u32, Refused> {
        let driver = &self.driver;
        Ok(match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_type().id(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => half(self.offered, driver.offered_half),
            Register::QueueSizeMax => self.max_size().map_or(0, u32::from),
            Register::QueueReady => self
                .selected()
                .map_or(0, |index| u32::from(driver.queues[index].ready)),
            Register::InterruptStatus => self.interrupt.reasons(),
            Register::Status => self.status_register(),
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => NO_REGION,
            Register::ConfigGeneration => self.interrupt.generation(),
            Register::QueueReset => 0,
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueSize
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel => return Err(Refused),
        })
    }

    fn write_register(&mut self, register: Register, value: u32) -> Result<(), Refused> {
        match register {
            Register::DeviceFeaturesSel => self.driver.offered_half = value,
            Register::DriverFeaturesSel => self.driver.accepted_half = value,
            Register::DriverFeatures => self.accept_features(value)?,
            Register::QueueSel => self.driver.queue = value,
            Register::QueueSize => self.set_queue_size(value)?,
            Register::QueueReady => self.set_queue_ready(value)?,
            Register::QueueDescLow => set_low(&mut self.unready_queue()?.desc_table, value),
            Register::QueueDescHigh => set_high(&mut self.unready_queue()?.desc_table, value),
            Register::QueueDriverLow => set_low(&mut self.unready_queue()?.avail_ring, value),
            Register::QueueDriverHigh => set_high(&mut self.unready_queue()?.avail_ring, value),
            Register::QueueDeviceLow => set_low(&mut self.unready_queue()?.used_ring, value),
            Register::QueueDeviceHigh => set_high(&mut self.unready_queue()?.used_ring, value),
            Register::QueueNotify => self.kick(value)?,
            Register::InterruptAck => self.interrupt.acknowledge(value),
            Register::Status => self.set_status(value)?,
            // There is no region to select.
            Register::ShmSel => {}
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueSizeMax
            | Register::InterruptStatus
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::QueueReset
            | Register::ConfigGeneration => return Err(Refused),
        }
        Ok(())
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), Refused> {
        // Before the features are agreed, the driver may only read (section 3.1.1, step 4).
        let status = self.driver.status;
        if !status.has(DeviceStatus::FEATURES_OK) || status.has(DeviceStatus::FAILED) {
            return Err(Refused);
        }
        self.device.write_config(offset, data);
        Ok(())
    }

    fn accept_features(&mut self, value: u32) -> Result<(), Refused> {
        if !self.driver.status.is_negotiating() {
            return Err(Refused);
        }
        let accepted = &mut self.driver.accepted;
        match self.driver.accepted_half {
            0 => *accepted = *accepted & !u64::from(u32::MAX) | u64::from(value),
            1 => *accepted = *accepted & u64::from(u32::MAX) | u64::from(value) << 32,
            // No feature above bit 63 is offered; Linux writes zeroes to no such half.
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Index of the selected queue, if there is one.
    fn selected(&self) -> Option<usize> {
        usize::try_from(self.driver.queue)
            .ok()
            .filter(|index| *index < self.max_sizes.len())
    }

    fn max_size(&self) -> Option<u16> {
        self.selected().map(|index| self.max_sizes[index])
    }

    /// The selected queue, if the driver may set it up now.
    fn queue_setup(&mut self) -> Result<&mut QueueSetup, Refused> {
        let index = self.selected().ok_or(Refused)?;
        if !self.driver.status.is_setting_up() {
            return Err(Refused);
        }
        Ok(&mut self.driver.queues[index])
    }

    /// The selected queue's size and addresses, if the driver may change them now.
    fn unready_queue(&mut self) -> Result<&mut QueueAddresses, Refused> {
        let queue = self.queue_setup()?;
        if queue.ready {
            return Err(Refused);
        }
        Ok(&mut queue.addresses)
    }

    fn set_queue_size(&mut self, value: u32) -> Result<(), Refused> {
        let max = self.max_size().ok_or(Refused)?;
        let size = u16::try_from(value).map_err(|_| Refused)?;
        if !size.is_power_of_two() || size > max {
            return Err(Refused);
        }
        self.unready_queue()?.size = size;
        Ok(())
    }

    fn set_queue_ready(&mut self, value: u32) -> Result<(), Refused> {
        let queue = self.queue_setup()?;
        match value {
            0 => queue.ready = false,
            1 => queue.ready = true,
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn kick(&self, index: u32) -> Result<(), Refused> {
        if !self.driver.status.is_live() {
            return Err(Refused);
        }
        let kick = usize::try_from(index)
            .ok()
            .and_then(|index| self.kicks.get(index))
            .ok_or(Refused)?;
        // Fails only when 2^64 - 2 kicks are pending, and then one more says nothing new.
        let _ = kick.write(1);
        Ok(())
    }

    fn status_register(&self) -> u32 {
        let needs_reset = if self.interrupt.is_reset_needed() {
            DeviceStatus::NEEDS_RESET
        } else {
            0
        };
        self.driver.status.bits() | needs_reset
    }

    fn set_status(&mut self, value: u32) -> Result<(), Refused> {
        let status = self.driver.status;
        match status.step_to(value).ok_or(Refused)? {
            Step::Reset => self.reset(),
            Step::Introduced => self.driver.status = status.with(value),
            // The driver gave up: nothing of its rings is touched from now on, neither by a worker
            // nor by somebody who serves the queues without one.
            Step::Failed => {
                self.driver.status = status.with(value);
                self.stop_device();
            }
            Step::FeaturesOk => {
                let accepted = self.driver.accepted;
                let is_subset = accepted & !self.offered == 0;
                if !is_subset || accepted & features::VERSION_1 == 0 {
                    // The driver reads the status again, and sees that we did not agree.
                    return Err(Refused);
                }
                self.driver.status = status.with(value);
            }
            Step::DriverOk => {
                self.driver.status = status.with(value);
                if let Err(error) = self.activate() {
                    self.fail(&error);
                }
            }
        }
        Ok(())
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let queues = self
            .driver
            .queues
            .iter()
            .zip(&self.kicks)
            .enumerate()
            .filter(|(_, (setup, _))| setup.ready)
            .map(|(index, (setup, kick))| self.active_queue(index, setup.addresses, kick))
            .collect::<Result<_, _>>()?;
        let active = Active {
            memory: self.memory.clone(),
            features: self.driver.accepted,
            queues,
            interrupt: self.interrupt.clone(),
        };
        if let Some(worker) = self.device.activate(active)? {
            let id = self.workers.start(worker).map_err(ActivateError::Worker)?;
            self.worker = Some(id);
        }
        Ok(())
    }

    fn active_queue(
        &self,
        index: usize,
        addresses: QueueAddresses,
        kick: &EventFd,
    ) -> Result<ActiveQueue, ActivateError> {
        // `new` allows no more queues than that.
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        let queue = Queue::new(self.memory.clone(), addresses, self.driver.accepted)
            .map_err(|source| ActivateError::Queue { index, source })?;
        let kick = kick
            .try_clone()
            .map_err(|source| ActivateError::Kick { index, source })?;
        Ok(ActiveQueue { index, queue, kick })
    }

    fn fail(&mut self, error: &ActivateError) {
        self.failures = self.failures.saturating_add(1);
        if self.failures <= LOGGED_FAILURES {
            let error: &dyn std::error::Error = error;
            let device = self.device.device_type();
            tracing::warn!(error, ?device, "a virtio device was not activated");
        }
        self.interrupt.needs_reset();
    }

    fn reset(&mut self) {
        self.stop_device();
        self.interrupt.reset();
        self.driver = Driver::new(self.max_sizes.len());
        for kick in &self.kicks {
            // What was kicked before the reset is void. An error only says that nothing was.
            let _ = kick.read();
        }
    }

    /// Afterwards nobody touches the rings any more.
    fn stop_device(&mut self) {
        self.stop_worker();
        self.device.reset();
    }

    fn stop_worker(&mut self) {
        if let Some(id) = self.worker.take() {
            self.workers.stop(id);
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.stop_worker();
    }
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.device_type())
            .field("driver", &self.driver)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

/// What an access of the guest is about.
enum Access {
    Register(Register),
    /// At this offset of the configuration space.
    Config(u64),
}

impl Access {
    /// Registers are accessed in 32 bits, the configuration in 8, 16 or 32, and all of it
    /// aligned (section 4.2.2.2).
    fn of(offset: u64, len: usize) -> Option<Self> {
        let len = len as u64;
        if !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len) {
            return None;
        }
        match offset {
            0..CONFIG_OFFSET if len == 4 => Register::at(offset).map(Self::Register),
            CONFIG_OFFSET..MMIO_WINDOW_SIZE => Some(Self::Config(offset - CONFIG_OFFSET)),
            _ => None,
        }
    }
}

/// The low (0) or high (1) 32 bits; features above bit 63 do not exist.
const fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

const fn set_low(address: &mut GuestAddress, value: u32) {
    address.0 = address.0 & !0xffff_ffff | value as u64;
}

const fn set_high(address: &mut GuestAddress, value: u32) {
    address.0 = address.0 & 0xffff_ffff | (value as u64) << 32;
}
