// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done with images, a file a command.
//!
//! ```text
//! pull       from a registry into the store       load, tag   into the store, and under another name
//! list       what is in the store                 remove      out of the store
//! unpack     the tree of one                      credentials, progress: what a pull asks for, and what it shows
//! ```

mod credentials;
mod list;
mod load;
mod progress;
mod pull;
mod remove;
mod unpack;

pub use list::images;
pub use load::{load, tag};
pub use pull::{fetch, pull};
pub use remove::rmi;
pub use unpack::unpacked;
