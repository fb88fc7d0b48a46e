// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices whose queues another process serves: a vhost-user front end.
//!
//! This side offers the device to the guest, and once the driver is ready it hands the queues, the guest's memory and
//! the interrupt line to a back end over a Unix socket. From then on requests go from guest to back end and back without
//! passing here. What is left to do is to watch the connection: a back end that dies would leave the guest waiting for
//! answers for ever, so the loss is told to the driver (DEVICE_NEEDS_RESET) and to the monitor
//! ([`VhostUserDevice::connection_lost`]). What a machine is worth without the device is for the monitor to decide.
//!
//! [`block`] and [`net`] make such devices; [`fs`](crate::fs) makes one as well. The guest's memory has to be mapped from
//! files ([`GuestMemory::shared`]), since another process cannot map anything else.
//!
//! Each conversation with the back end has a time limit: negotiation [`PATIENCE`], start and stop, which a vCPU waits for,
//! a few seconds. A back end that does not keep to it, answers what was not asked or refuses to stop is given up: its
//! connection is closed.
//!
//! There is no `queue.rs` here as in other devices: the queues are read by the back end.
//!
//! [`GuestMemory::shared`]: coracle_memory::GuestMemory::shared

mod block;
mod connection;
mod device;
mod frontend;
mod message;
mod net;

pub use block::block;
pub use connection::{ConnectionError, PATIENCE};
pub(crate) use device::{ConfigSpace, Kind};
pub use device::{VhostUserDevice, VhostUserError};
pub use frontend::BackendError;
pub use net::{Mac, net};
