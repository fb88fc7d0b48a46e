// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console device (virtio 1.3, section 5.3), with a single port.
//!
//! What the guest writes goes to a [`Write`](std::io::Write), as a rule a
//! [`BoundedLog`](crate::BoundedLog); what arrives on an optional file descriptor becomes the
//! guest's input. No features are offered: no window size, no further ports, no emergency write
//! (the [serial port](crate::legacy::serial) carries what comes before the driver).

mod backend;
mod device;
mod queue;

pub use device::Console;
pub use queue::{MAX_TRANSMIT, receive, transmit};
