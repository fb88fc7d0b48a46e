// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one guest may use of the host.

use std::time::Duration;

/// Bounds on what a device holds for its guest.
///
/// The host's memory that a guest can make a device hold is at most `connections * buffer`, and is
/// only reached if as many programs of the host do not read what they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, those that are being made or ended included; at most 65,536. Each
    /// holds one descriptor of the host. Further ones are refused.
    pub connections: u32,
    /// Bytes of the guest's that are held for one connection while the host does not read them:
    /// what the guest may send before it must wait. At least 1.
    pub buffer: u32,
    /// How long a connection may take to be made: for the guest to answer the host, and for a
    /// program of the host, whose queue of connections is full, to make room.
    pub connect_timeout: Duration,
    /// How long a guest may take to reset a connection that has ended in both directions, before it
    /// is reset from here.
    pub close_timeout: Duration,
}

impl Limits {
    /// The largest number of connections.
    pub const MAX_CONNECTIONS: u32 = 1 << 16;

    /// These limits, brought into the ranges that are allowed.
    pub(crate) fn sane(self) -> Self {
        Self {
            connections: self.connections.min(Self::MAX_CONNECTIONS),
            buffer: self.buffer.max(1),
            ..self
        }
    }
}

impl Default for Limits {
    /// 1023 connections of 128 KiB, 10 s to connect and 8 s (as Linux has it) to close.
    fn default() -> Self {
        Self {
            connections: 1023,
            buffer: 128 * 1024,
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(8),
        }
    }
}
