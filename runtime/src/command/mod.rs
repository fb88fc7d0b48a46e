// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done with containers that there are, a file a command.

mod console;
mod cp;
mod dump;
mod ending;
mod exec;
mod inspect;
mod logs;
mod ps;
mod reach;
mod rm;
mod stats;

pub use console::console;
pub use cp::cp;
pub use dump::dump;
pub use ending::{kill, stop};
pub use exec::exec;
pub use inspect::inspect;
pub use logs::logs;
pub use ps::ps;
pub use reach::{containers, each};
pub use rm::rm;
pub use stats::stats;
