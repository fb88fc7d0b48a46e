// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device is to its transport, and what the transport hands to a device.

use coracle_memory::GuestMemory;
use event_manager::MutEventSubscriber;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::{Interrupt, Queue, QueueSetupError};

/// The kind of a device, by its number in virtio 1.3, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum DeviceType {
    /// Network card (section 5.1).
    Net = 1,
    /// Block device (section 5.2).
    Block = 2,
    /// Console (section 5.3).
    Console = 3,
    /// Entropy source (section 5.4).
    Entropy = 4,
    /// Traditional memory balloon (section 5.5).
    Balloon = 5,
    /// SCSI host (section 5.6).
    Scsi = 8,
    /// Graphics adapter (section 5.7).
    Gpu = 16,
    /// Input device (section 5.8).
    Input = 18,
    /// Socket device (section 5.10).
    Vsock = 19,
    /// Crypto device (section 5.9).
    Crypto = 20,
    /// IOMMU (section 5.13).
    Iommu = 23,
    /// Memory device (section 5.15).
    Memory = 24,
    /// File system (section 5.11).
    FileSystem = 26,
    /// Persistent memory (section 5.19).
    PersistentMemory = 27,
}

impl DeviceType {
    /// The number that the driver reads.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }
}

/// A virtio device behind a transport.
///
/// The transport calls it from the vCPU threads, one call at a time. What serves the queues is
/// not this object but the [`Worker`] that [`activate`](Self::activate) makes of it, on a thread
/// of the VMM's choice. A worker must never wait for the thread that holds the transport:
/// a reset stops the worker while it holds it.
pub trait VirtioDevice: Send {
    /// What kind of device this is.
    fn device_type(&self) -> DeviceType;

    /// The largest size of each queue, in descriptors: powers of two up to
    /// [`MAX_QUEUE_SIZE`](crate::MAX_QUEUE_SIZE). Does not change.
    fn queue_sizes(&self) -> &[u16];

    /// The features offered: the device's own, and those of [`features`](crate::features) that
    /// it can do. The transport adds [`VERSION_1`](crate::features::VERSION_1).
    fn features(&self) -> u64;

    /// Reads `data.len()` bytes (1, 2 or 4) of the configuration space at `offset`. `data` is
    /// zeroed, and what lies past the end of the space is left so.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2 or 4) of the configuration space at `offset`. Ignored
    /// unless the device has something to be written.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: makes the worker that serves the queues from now on, or `None` if
    /// somebody else serves them (a vhost-user backend).
    ///
    /// # Errors
    ///
    /// [`ActivateError`]; the transport then tells the driver that the device needs a reset.
    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError>;

    /// The driver resets the device or gives up on it: back to how it was when made. The worker was
    /// stopped and dropped before. Called also when the device never became active, or was reset
    /// already.
    fn reset(&mut self);
}

/// What serves an active device's queues: an event loop calls it when a descriptor is ready.
pub type Worker = Box<dyn MutEventSubscriber + Send>;

/// The threads that run workers. Made by the VMM, used by transports.
pub trait Workers: Send + Sync {
    /// Runs `worker` until it is stopped.
    ///
    /// # Errors
    ///
    /// [`WorkerError`], and then the worker was dropped.
    fn start(&self, worker: Worker) -> Result<WorkerId, WorkerError>;

    /// Stops and drops the worker before it returns. A worker that is gone already is no error.
    fn stop(&self, id: WorkerId);
}

/// A running worker, by the number its [`Workers`] gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u64);

/// Why a worker could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The threads that run workers have ended.
    #[error("no thread runs workers any more")]
    Ended,
    /// The event loop did not take the worker.
    #[error("the event loop does not take the worker")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Active {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that device and driver agreed on.
    pub features: u64,
    /// The queues that the driver made ready, in the order of their index. A driver may leave
    /// some out, so a device asks by index.
    pub queues: Vec<ActiveQueue>,
    /// How the device interrupts the driver.
    pub interrupt: Interrupt,
}

impl Active {
    /// Takes the queue of this index out.
    ///
    /// # Errors
    ///
    /// [`ActivateError::QueueNotReady`], if the driver left it out.
    pub fn take_queue(&mut self, index: u16) -> Result<ActiveQueue, ActivateError> {
        self.queues
            .iter()
            .position(|queue| queue.index == index)
            .map(|at| self.queues.remove(at))
            .ok_or(ActivateError::QueueNotReady(index))
    }
}

/// A queue that the driver made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its index among the device's queues.
    pub index: u16,
    /// The queue itself.
    pub queue: Queue,
    /// Becomes readable when the driver has added chains and wants them looked at.
    pub kick: EventFd,
}

/// Why a device could not be activated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The driver left out a queue that the device needs.
    #[error("queue {0} was not made ready by the driver")]
    QueueNotReady(u16),
    /// The driver set a queue up wrongly.
    #[error("queue {index} is not set up as the device can use it")]
    Queue {
        /// Index of the queue.
        index: u16,
        /// What is wrong with it.
        source: QueueSetupError,
    },
    /// A descriptor that announces kicks could not be duplicated.
    #[error("the kick descriptor of queue {index} cannot be duplicated")]
    Kick {
        /// Index of the queue.
        index: u16,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The device's own reason.
    #[error("the device cannot start")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The worker could not be started.
    #[error("the device's worker cannot start")]
    Worker(#[source] WorkerError),
}

impl ActivateError {
    /// A device's own reason.
    pub fn device(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Device(reason.into())
    }
}
