// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

mod bounded_log;
pub mod console;
pub mod fs;
pub mod legacy;
pub mod rng;
mod serve;
#[cfg(test)]
mod testing;

pub use bounded_log::{BoundedLog, LogError, MIN_LIMIT};
