// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! [`machine`] is the emulated machine, pinned in one place; [`debian`] and [`files`] make what it
//! boots; [`snapshot`] starts it; [`session`] runs a command in it, speaking [`protocol`].

pub mod cache;
pub mod debian;
pub mod emulator;
pub mod files;
pub mod host;
pub mod machine;
pub mod payload;
pub mod progress;
pub mod protocol;
pub mod qmp;
pub mod session;
pub mod snapshot;
