// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod boot;
pub mod cgroup;
pub mod channel;
mod clone;
pub mod container;
pub mod disks;
pub mod init;
pub mod log;
pub mod modules;
pub mod network;
pub mod reaper;
pub mod sandbox;
pub mod service;
pub mod shutdown;
pub mod spec;
pub mod vsock;

/// An error and what caused it, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
