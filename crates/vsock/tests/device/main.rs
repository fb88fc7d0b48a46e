// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device, driven through its transport and queues by a guest on the test's own thread.

mod closing;
mod guest;
mod limits;
mod memory;
mod opening;
mod packets;
mod random;
mod resets;
mod sharing;
mod transfer;
