// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The containers of this guest, from their making to their removal.

pub use lifecycle::End;
pub use registry::Containers;

mod lifecycle;
mod program;
mod registry;
pub mod spawn;
pub mod stdio;
