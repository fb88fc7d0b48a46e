// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a running virtual machine ends.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{EventLoopError, FilterError, VcpuError};

/// An ordinary end: the guest's wish, or the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exit {
    /// The guest turned the machine off.
    Shutdown,
    /// The guest reset the machine, through the keyboard controller or ACPI.
    Reset,
    /// A vCPU met a fault while handling a double fault: how a broken kernel ends, and an old way to reset.
    TripleFault,
    /// A vCPU halted with nothing to wake it.
    Halted,
    /// The caller stopped the machine, or went away.
    Stopped,
}

/// An end that nobody asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// A vCPU cannot go on.
    #[error("vCPU {index} cannot go on")]
    Vcpu {
        /// Which one.
        index: u8,
        /// The reason.
        source: VcpuError,
    },
    /// A vCPU's thread cannot be confined.
    #[error("the thread of vCPU {index} cannot be confined")]
    Confine {
        /// Which one.
        index: u8,
        /// The reason.
        source: FilterError,
    },
    /// A disk's thread cannot be confined.
    #[error("the thread of disk {index} cannot be confined")]
    ConfineDisk {
        /// Which one, in the order of the configuration.
        index: usize,
        /// The reason.
        source: FilterError,
    },
    /// The debugger's thread cannot be confined.
    #[error("the debugger's thread cannot be confined")]
    ConfineDebugger(#[source] FilterError),
    /// The devices of the event loop cannot be served.
    #[error("the event loop cannot go on")]
    EventLoop(#[source] EventLoopError),
    /// The controlling process leaves too many answers to its requests unread.
    #[error("the controlling process does not read the answers to its requests")]
    Unread,
    /// A vhost-user backend went away.
    #[error("the backend of the shared file system {tag:?} is gone")]
    BackendGone {
        /// The tag of the file system.
        tag: String,
    },
}
