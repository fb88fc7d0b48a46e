// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio driver of a few instructions: it writes registers and rings by stores of constants.

use super::code::store;

/// The first device's window.
pub const WINDOW: u32 = 0xd000_0000;
/// The second device's window.
pub const SECOND_WINDOW: u32 = 0xd000_1000;

const RINGS: u32 = 0x20_0000;
const QUEUE_SIZE: u32 = 8;

/// Where a queue's parts are.
fn descriptors(queue: u32) -> u32 {
    RINGS + queue * 0x4000
}

fn available(queue: u32) -> u32 {
    descriptors(queue) + 0x1000
}

/// The used ring of a queue.
pub fn used(queue: u32) -> u32 {
    descriptors(queue) + 0x2000
}

/// The buffer of a queue's only descriptor.
pub fn buffer(queue: u32) -> u32 {
    descriptors(queue) + 0x3000
}

/// Takes the device at `window` from its reset to `DRIVER_OK`, with the first `queues` queues.
pub fn set_up(window: u32, queues: u32) -> Vec<u8> {
    let register = |offset, value| store(window + offset, value);
    let queue = |index| {
        [
            register(0x30, index),
            register(0x38, QUEUE_SIZE),
            register(0x80, descriptors(index)),
            register(0x84, 0),
            register(0x90, available(index)),
            register(0x94, 0),
            register(0xa0, used(index)),
            register(0xa4, 0),
            register(0x44, 1),
        ]
        .concat()
    };
    [
        register(0x70, 0),
        register(0x70, 1 | 2),
        // VIRTIO_F_VERSION_1 is bit 32, and nothing else is taken.
        register(0x24, 1),
        register(0x20, 1),
        register(0x70, 1 | 2 | 8),
        (0..queues).flat_map(queue).collect(),
        register(0x70, 1 | 2 | 8 | 4),
    ]
    .concat()
}

/// Publishes one buffer of `len` bytes, for the device to write or to read, and kicks the device.
pub fn publish(window: u32, queue: u32, len: u32, device_writes: bool) -> Vec<u8> {
    let table = descriptors(queue);
    [
        store(table, buffer(queue)),
        store(table + 4, 0),
        store(table + 8, len),
        store(table + 12, if device_writes { 2 } else { 0 }),
        // Flags 0 and index 1; the ring's first entry is descriptor 0 already.
        store(available(queue), 1 << 16),
        store(window + 0x50, queue),
    ]
    .concat()
}

/// Publishes the first `request` bytes of the buffer for the device to read and `len` bytes at [`answer`] for it to
/// write, and kicks the device.
pub fn publish_request(window: u32, queue: u32, request: u32, len: u32) -> Vec<u8> {
    let table = descriptors(queue);
    [
        store(table, buffer(queue)),
        store(table + 4, 0),
        store(table + 8, request),
        // Followed by descriptor 1.
        store(table + 12, 1 | 1 << 16),
        store(table + 16, answer(queue)),
        store(table + 20, 0),
        store(table + 24, len),
        store(table + 28, 2),
        store(available(queue), 1 << 16),
        store(window + 0x50, queue),
    ]
    .concat()
}

/// `1: incw index; mov $queue, %eax; mov %eax, notify; jmp 1b`: publishes the queue's only chain for ever.
pub fn publish_again(window: u32, queue: u32) -> Vec<u8> {
    let index = (available(queue) + 2).to_le_bytes();
    let notify = (window + 0x50).to_le_bytes();
    [
        &[0x66, 0xff, 0x05][..],
        &index,
        &[0xb8],
        &queue.to_le_bytes(),
        &[0xa3],
        &notify,
        &[0xeb, 0xed],
    ]
    .concat()
}

/// Where the device's answer to a request is.
pub fn answer(queue: u32) -> u32 {
    buffer(queue) + 0x800
}

/// `1: cmpw $0, used index; je 1b`: waits until the device has used the buffer.
pub fn wait_for_used(queue: u32) -> Vec<u8> {
    let index = (used(queue) + 2).to_le_bytes();
    [&[0x66, 0x83, 0x3d][..], &index, &[0x00, 0x74, 0xf6]].concat()
}
