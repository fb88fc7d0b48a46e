// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod boot;
pub mod cgroup;
pub mod channel;
pub mod container;
pub mod init;
pub mod log;
pub mod net;
pub mod reaper;
pub mod sandbox;
pub mod service;
pub mod shutdown;
pub mod spec;
pub mod vsock;
