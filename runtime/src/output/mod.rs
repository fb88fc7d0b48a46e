// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container puts out: on its way to whoever started it ([`copy`]), and into its log ([`log`]), where it is
//! found again ([`entries`]).

mod copy;
mod entries;
mod log;
mod messages;

pub use copy::{Output, Rest, Sink, start_input};
pub use entries::{Entry, Logged, Logging};
pub use log::{Log, Stream};
pub use messages::{MESSAGES, bounded};
