// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod beneath;
pub mod digest;
pub mod disk;
pub mod image;
pub mod layer;
pub mod own_directory;
pub mod plan;
mod show;
pub mod spec;
pub mod store;
mod tarball;
pub mod tree_hash;
pub mod unpack;
pub mod user;
pub mod volume;
