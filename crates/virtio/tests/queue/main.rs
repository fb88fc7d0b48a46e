// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of a queue, against drivers good and bad, and against virtio-queue's.

mod against_virtio_queue;
mod chains;
mod notifications;
mod set_up;

use coracle_memory::GuestAddress;
use coracle_virtio::testing::{self, Driver};

const MEMORY: u64 = 1 << 20;
const SIZE: u16 = 4;

fn driver() -> Driver {
    let memory = testing::memory(MEMORY);
    Driver::new(&memory, GuestAddress(0x1000), 0x8000, SIZE).unwrap()
}
