// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device (virtio 1.3, section 5.11), served by another process.
//!
//! This side is a vhost-user frontend: it offers the device to the guest, and once the driver is
//! ready it hands the queues, the guest's memory and the interrupt line to a backend over a Unix
//! socket. From then on requests go from guest to backend and back without passing here. What is
//! left to do is to watch the connection: a backend that dies would leave the guest waiting for
//! answers for ever, so the loss is reported both to the driver (DEVICE_NEEDS_RESET) and to the
//! VMM ([`VhostUserFs::connection_lost`]).
//!
//! The guest's memory has to be mapped from files ([`GuestMemory::shared`]), since another
//! process cannot map anything else.
//!
//! Requests to the backend (negotiation, activation, reset) are answered at once by a backend
//! that works, and have no deadline of their own: a backend that is alive but silent is for
//! whoever started both processes to end, which closes the connection.
//!
//! There is no `queue.rs` here as in other devices: the queues are read by the backend.
//!
//! [`GuestMemory::shared`]: coracle_memory::GuestMemory::shared

mod backend;
mod device;

pub use backend::BackendError;
pub use device::{FsError, MAX_REQUEST_QUEUES, MAX_TAG, VhostUserFs};
