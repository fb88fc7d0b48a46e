// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept of a container on the host, and what it says while the container lives and after.
//!
//! ```text
//! <root>/containers/<id>    locked by the process that runs the container for as long as it does
//!     record.json           what it is and how it fares: written anew at each step, by its runner alone
//!     record.json.new       while it runs: the room that its end takes, should the disk be full by then
//!     upper                 what the container has written
//!     work                  overlayfs's own, while it runs
//!     messages              what its runner had to say in the background
//!     log, log.1            what it has put out, unless it goes to whoever started it alone
//! <state>/<id>              while it runs: sockets and mount points
//! ```
//!
//! Whoever makes a container, or gives it a name, has `<root>/containers` locked meanwhile. Whoever removes something of
//! one has its state directory locked; whoever copies files of one that has ended, its directory, shared.
//!
//! Whether a container runs is told by the lock, never by the record: whatever a killed process last wrote, or a host
//! that lost its power, is not taken for true.

mod directory;
mod id;
mod janitor;
mod list;
mod places;
mod record;
mod removal;
mod time;

pub use directory::RunDirectory;
pub use id::{Id, Name};
pub use list::{Containers, Found, State};
pub use places::{Heard, Places};
#[cfg(test)]
pub use record::tests::running;
pub use record::{Record, Status};
pub use removal::remove_tree;
pub use time::Time;
