// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device (virtio 1.3, section 5.4): random bytes of the host for the guest.
//!
//! One queue, no features, no configuration. Each buffer that the driver publishes comes back
//! with at least one random byte and at most [`MAX_REQUEST`] of them. A guest without such a
//! device has little entropy when it needs it most, at its first boot and right after it was
//! cloned from a template.

mod backend;
mod device;
mod queue;

pub use backend::HostEntropy;
pub use device::Rng;
pub use queue::{MAX_REQUEST, RequestError, fill};
