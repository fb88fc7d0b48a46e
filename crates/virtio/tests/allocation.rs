// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steady state allocates nothing: a driver that keeps a device busy costs no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use coracle_memory::GuestAddress;
use coracle_virtio::testing::{self, Driver};
use coracle_virtio::{Chain, Queue, features};

thread_local! {
    /// Of this thread: the test harness has others.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; the count is beside it, and allocates
// nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes all chains, reads and writes them in pieces that do not fit the buffers, returns them.
fn serve(queue: &mut Queue, chain: &mut Chain) -> usize {
    let mut served = 0;
    while queue.pop(chain).unwrap() {
        let (mut reader, mut writer) = (chain.readable(), chain.writable());
        let header: [u8; 3] = reader.read_obj().unwrap();
        writer.write_all(&header).unwrap();
        assert!(!reader.iovecs(usize::MAX).is_empty());
        assert!(!writer.iovecs(5).is_empty());
        drop((reader, writer));
        queue.add_used(chain.head(), 3).unwrap();
        served += 1;
    }
    queue.needs_interrupt();
    served
}

#[test]
fn serving_chains_allocates_nothing() {
    let memory = testing::memory(1 << 20);
    let mut driver = Driver::new(&memory, GuestAddress(0), 1 << 20, 64).unwrap();
    let mut queue = driver.queue(features::RING).unwrap();
    let mut chain = Chain::new();
    let message = [b"readable".as_slice(); 4];
    let heads = [
        driver.add(&message, &[8; 4]).unwrap(),
        driver.add_indirect(&message, &[8; 4]).unwrap(),
    ];
    assert_eq!(serve(&mut queue, &mut chain), 2);
    let before = ALLOCATIONS.get();

    let mut served = 0;
    for _ in 0..1000 {
        for head in heads {
            driver.publish(head).unwrap();
        }
        served += serve(&mut queue, &mut chain);
    }

    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(served, 2000);
}
