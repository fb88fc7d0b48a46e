// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod challenge;
mod client;
mod content;
pub mod credentials;
pub mod document;
mod error;
mod host;
mod http;
mod layout;
mod options;
mod progress;
mod pull;
mod resolve;
mod retry;
mod session;
mod show;
mod sink;
mod tls;
mod url;

pub use self::challenge::Challenge;
pub use self::client::Client;
pub use self::error::{RegistryError, Tried};
pub use self::layout::Layout;
pub use self::options::{Limits, Options, Retry, Timeouts};
pub use self::progress::{Progress, State};
pub use self::pull::Pulled;
pub use self::sink::Sink;
