// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio over MMIO, version 2 (virtio 1.3, section 4.2): registers, and the transport behind them.

mod register;
mod transport;

pub use register::{CONFIG_OFFSET, MMIO_WINDOW_SIZE, NOTIFY_OFFSET, Register};
pub use transport::{MmioTransport, TransportError};
