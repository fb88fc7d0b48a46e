// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature bits that belong to rings and transports, not to a device (virtio 1.3, section 6).

/// The driver may use descriptors that refer to a table of descriptors (section 2.7.5.3).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;

/// Kicks and interrupts are asked for by ring index (sections 2.7.7 and 2.7.10).
pub const RING_EVENT_IDX: u64 = 1 << 29;

/// The device conforms to virtio 1.0 or later. The transport offers it for every device, and
/// refuses a driver that does not accept it.
pub const VERSION_1: u64 = 1 << 32;

/// What [`Queue`](crate::Queue) can do for any device: what most devices offer beside their own.
pub const RING: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX;
