// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod backlog;
pub mod buffer;
pub mod connection;
pub mod credit;
mod device;
mod endpoint;
mod greeting;
mod limits;
mod link;
mod mux;
pub mod packet;
mod stream;
mod table;
mod timer;
mod worker;

pub use device::{VsockDevice, VsockError, VsockHandle};
pub use endpoint::EndpointError;
pub use limits::Limits;
