// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

#[cfg(not(target_endian = "little"))]
compile_error!("virtio structures are little-endian, and so must the host be");

mod chain;
mod device;
pub mod features;
mod interrupt;
mod mmio;
mod queue;
mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// Crates whose types are part of this one's interface.
pub use {event_manager, vmm_sys_util};

pub use chain::{Chain, ChainError, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, walk};
pub use chain::{Reader, TransferError, Writer};
pub use device::{
    ActivateError, Active, ActiveQueue, DeviceType, VirtioDevice, Worker, WorkerError, WorkerId,
    Workers,
};
pub use interrupt::Interrupt;
pub use mmio::{
    CONFIG_OFFSET, MMIO_WINDOW_SIZE, MmioTransport, NOTIFY_OFFSET, Register, TransportError,
};
pub use queue::{MAX_QUEUE_SIZE, Queue, QueueAddresses, QueueError, QueueSetupError, RingPart};
pub use status::DeviceStatus;
