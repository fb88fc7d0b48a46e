// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The containers of this guest, from their making to their removal.

pub use lifecycle::End;
pub use registry::{Containers, ProcessId};

mod lifecycle;
mod pipes;
mod process;
mod program;
mod registry;
pub mod spawn;
pub mod stdio;
mod terminal;
