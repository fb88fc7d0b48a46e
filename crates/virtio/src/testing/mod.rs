// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other sides of a device, for its tests and fuzz targets: a [`Driver`] that puts a ring
//! into guest memory, one that brings a transport up ([`activate`]), and [`LocalWorkers`] and
//! [`OneThread`], which run a worker without a thread and on one.
//!
//! Behind the feature `testing`. What can go wrong through hostile input is an error here, so
//! that a fuzz target can go on; what can only go wrong on a broken host panics.

mod driver;
mod mmio;
mod one_thread;
mod workers;

use coracle_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Interrupt;
pub use driver::{Driver, DriverError, Used};
pub use mmio::{activate, read_register, set_up_queue, write_register};
pub use one_thread::OneThread;
pub use workers::LocalWorkers;

/// A nonblocking eventfd.
///
/// # Panics
///
/// If the process is out of descriptors.
#[must_use]
pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("the process is out of descriptors")
}

/// An interrupt with a line of its own, to be read through [`Interrupt::line`].
///
/// # Panics
///
/// If the process is out of descriptors.
#[must_use]
pub fn interrupt() -> Interrupt {
    Interrupt::new(eventfd())
}

/// One region of `len` bytes of guest memory from address 0 on.
///
/// # Panics
///
/// If `len` is no multiple of the page size, or the host has no memory.
#[must_use]
pub fn memory(len: u64) -> GuestMemory {
    GuestMemory::anonymous(&[(GuestAddress(0), len)]).expect("whole pages that the host can map")
}
