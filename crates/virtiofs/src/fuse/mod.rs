// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The FUSE protocol as a virtio-fs device speaks it: what lies in the bytes, and nothing about files.
//!
//! Everything that a request can hold is turned into an [`Operation`] here, once, with every length and
//! name checked; the code behind it never sees raw guest bytes.

pub mod abi;
mod body;
pub mod flags;
mod name;
mod opcode;
mod request;
mod set_attr;

pub use name::{MAX_NAME, MAX_TARGET, Name};
pub use opcode::Opcode;
pub use request::{ForgetList, Operation};
pub use set_attr::{SetAttr, TimeChange};
