// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod cpio;
pub mod index;
pub mod initramfs;
pub mod modules;
pub mod slim;
pub mod vmlinux;

// What reads a compressed kernel reads a compressed module too.
pub use coracle_boot::compressed::{compression, vmlinuz};

#[cfg(test)]
mod tests_support;
