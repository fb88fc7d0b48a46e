// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What end-to-end tests stand on: the built programs and images, a run of `coracle` that can be
//! watched, and a check that it left nothing behind.
//!
//! Where things are comes from the environment, set by `make e2e`: `CORACLE_BIN` (the executable),
//! `CORACLE_GUEST` (kernel and initial file system) and `CORACLE_IMAGES` (test images).

mod cgroup;
mod container;
pub mod guests;
mod host;
mod image;
mod layout;
mod running;
mod terminal;
pub mod tools;

use std::path::PathBuf;

pub use container::Container;
pub use host::Host;
pub use image::Image;
pub use layout::Layout;
pub use running::{Finished, Running};
pub use terminal::Terminal;

/// A path that the environment must name.
///
/// # Panics
///
/// Panics where it does not: the tests cannot do anything without it.
pub fn path_from_environment(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(path) => PathBuf::from(path),
        None => panic!("the environment does not set {name}: run these tests with `make e2e`"),
    }
}
