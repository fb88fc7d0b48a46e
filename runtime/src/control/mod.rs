// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How other `coracle` processes reach the one that runs a container: a Unix socket in its state directory, which
//! root alone may enter.
//!
//! One connection is for one thing. Its first line is a [`Request`]; what comes back is [`Answer`]s, a line of JSON
//! each, one of them with descriptors. Nothing of this is promised to others: both ends are of one version.

use std::time::Duration;

mod connection;
mod protocol;

pub use connection::{Connection, Listener, ReceiveError};
pub use protocol::{Answer, Exec, Request, Size, Usage};

/// How long a guest's agent may take for what another process asks for. Both ends go by it.
pub const ANSWER: Duration = Duration::from_secs(5);
