// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading tar streams: POSIX ustar, pax and GNU headers.
//!
//! Written here because what images need differs from what general readers do: extension records
//! of bounded size (a reader that keeps them whole can be made to fill memory), pax values that
//! contain newlines (file capabilities do), an error where the stream ends inside a file, and
//! refusal where readers are known to disagree, so that no archive means two things.

mod entries;
mod entry;
mod error;
mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use self::entries::Entries;
pub use self::entry::{Entry, Kind, Time};
pub use self::error::TarError;
