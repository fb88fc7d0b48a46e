// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

pub mod block;
mod bounded_log;
mod config_space;
pub mod console;
pub mod fs;
pub mod legacy;
pub mod net;
pub mod rng;
mod serve;
#[cfg(test)]
mod testing;
pub mod vhost_user;

pub use bounded_log::{BoundedLog, LogError, MIN_LIMIT};
