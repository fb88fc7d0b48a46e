// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device (virtio 1.3, section 5.2): a disk for the guest.
//!
//! What is on the disk is a [`Storage`], as a rule a [`DiskFile`]: a regular file or a block device, byte for byte as
//! the guest sees it. Its format is never guessed: a guest that writes another format's header onto its disk changes
//! nothing about how the disk is read.
//!
//! One queue. A request's buffers go to the host's kernel as they lie in guest memory, and are not copied. Offered are
//! flushes, a choice between write-back and write-through caching, discarding and writing zeroes; a read-only disk
//! offers reading alone. A request that the disk cannot do is answered with an error, and the device goes on.
//!
//! The worker does its I/O in the calls of its event loop and waits for it there, so that loop should serve this disk
//! only. It gives the loop back after [`ROUND`] at the latest, or one request later.

mod backend;
mod config;
mod device;
mod queue;

pub use backend::{DiskError, DiskFile};
pub use device::{Block, MAX_SERIAL, ROUND, SerialError};
pub use queue::{
    Answer, Disk, MAX_DATA, MAX_RANGE_SECTORS, MAX_RANGES, MAX_ZERO_RANGES, Properties, Range,
    Ranges, Refusal, Request, RequestError, SECTOR, Storage, parse, serve,
};
