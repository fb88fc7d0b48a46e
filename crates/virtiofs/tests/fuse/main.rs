// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A directory shared with a guest that speaks FUSE, by any user.

#[path = "../guest/mod.rs"]
mod guest;

mod attributes;
mod bounds;
mod data;
mod directories;
mod escape;
mod names;
mod protocol;
mod random;
mod read_only;
mod xattrs;
