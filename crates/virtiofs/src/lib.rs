// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod buffers;
pub mod daemon;
pub mod filesystem;
pub mod fuse;
pub mod passthrough;
pub mod role;
pub mod sandbox;
pub mod server;
