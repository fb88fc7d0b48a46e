// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod compression;
pub mod cpio;
pub mod initramfs;
pub mod modules;
pub mod slim;
pub mod vmlinuz;

#[cfg(test)]
mod tests_support;
