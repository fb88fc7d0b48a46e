// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers that break their rings.

use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor};

use crate::frames::{GUEST, HOST, frame, number, numbered};
use crate::guest::{self, Guest, MRG_RXBUF, OUTSIDE, QUEUE_SIZE, RECEIVE, TRANSMIT};
use crate::host::{self, PLAIN};

/// A buffer in the transmit queue's part of memory.
const BUFFER: Descriptor = Descriptor {
    address: 0x48_0000,
    len: 2000,
    flags: 0,
    next: 0,
};

/// Descriptors that are no chain: each for either direction, with `flags` for the direction.
fn broken(flags: u16) -> [Descriptor; 6] {
    let buffer = Descriptor { flags, ..BUFFER };
    [
        Descriptor {
            address: OUTSIDE,
            ..buffer
        },
        Descriptor {
            address: OUTSIDE - 1000,
            ..buffer
        },
        Descriptor {
            address: u64::MAX - 8,
            ..buffer
        },
        Descriptor { len: 0, ..buffer },
        Descriptor {
            flags: flags | DESC_NEXT,
            ..buffer
        },
        Descriptor {
            flags: flags | DESC_NEXT,
            next: QUEUE_SIZE,
            ..buffer
        },
    ]
}

fn broken_chain_takes_the_device_out_of_service() {
    for (queue, flags) in [(RECEIVE, DESC_WRITE), (TRANSMIT, 0)] {
        for descriptor in broken(flags) {
            let (host, tap) = host::tap();
            let mut guest = Guest::new(tap, MRG_RXBUF);
            guest.queues[queue].put(0, descriptor).unwrap();
            guest.queues[queue].publish(0).unwrap();

            guest.kick(queue);
            host.send(&PLAIN, &numbered(HOST, 1));
            guest.settle();

            assert!(guest.needs_reset(), "{descriptor:?}");
            assert_eq!(guest.queues[queue].used().unwrap(), None);
        }
    }
}

fn receive_buffer_without_use_takes_the_device_out_of_service() {
    for (readable, writable) in [(&[&[0; 2000][..]][..], &[][..]), (&[], &[11])] {
        let (_host, tap) = host::tap();
        let mut guest = Guest::new(tap, MRG_RXBUF);
        guest.queues[RECEIVE].add(readable, writable).unwrap();

        guest.kick(RECEIVE);

        assert!(guest.needs_reset());
    }
}

fn index_too_far_ahead_takes_the_device_out_of_service() {
    for queue in [RECEIVE, TRANSMIT] {
        let (_host, tap) = host::tap();
        let mut guest = Guest::new(tap, 0);
        guest.queues[queue].set_avail_index(QUEUE_SIZE + 1).unwrap();

        guest.kick(queue);

        assert!(guest.needs_reset());
    }
}

fn buffer_given_twice_takes_the_device_out_of_service() {
    let (_host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    let head = guest.queues[RECEIVE].add(&[], &[1526]).unwrap();
    guest.queues[RECEIVE].publish(head).unwrap();

    guest.kick(RECEIVE);

    assert!(guest.needs_reset());
}

/// It is not in use any more when it is seen again.
fn packet_published_twice_is_sent_twice() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    let packet = [&guest::PLAIN[..], &numbered(GUEST, 7)].concat();
    let head = guest.queues[TRANSMIT].add(&[&packet], &[]).unwrap();
    guest.queues[TRANSMIT].publish(head).unwrap();

    guest.kick(TRANSMIT);

    assert_eq!(number(&host.receive().1), 7);
    assert_eq!(number(&host.receive().1), 7);
}

/// The buffers of a packet are all the same one.
fn buffers_may_overlap() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    for head in 0..QUEUE_SIZE {
        let buffer = Descriptor {
            address: 0x20_0000,
            len: 12,
            flags: DESC_WRITE,
            next: 0,
        };
        guest.queues[RECEIVE].put(head, buffer).unwrap();
        guest.queues[RECEIVE].publish(head).unwrap();
    }

    guest.kick(RECEIVE);
    host.send(&PLAIN, &numbered(HOST, 1));
    guest.settle();

    assert_eq!(guest.queues[RECEIVE].used().unwrap().unwrap().len, 12);
    assert!(!guest.needs_reset());
}

/// A turn has a limit of packets, and one of bytes.
fn flood_of_packets_leaves_others_their_turn() {
    for (len, most) in [(60, QUEUE_SIZE), (60_000, 20)] {
        let (_host, tap) = host::tap();
        let mut guest = Guest::new(tap, 0);
        let packet = [&guest::PLAIN[..], &frame(GUEST, len)].concat();
        let head = guest.queues[TRANSMIT].add(&[&packet], &[]).unwrap();
        for _ in 1..QUEUE_SIZE {
            guest.queues[TRANSMIT].publish(head).unwrap();
        }
        guest.transport.kicks()[TRANSMIT].write(1).unwrap();
        guest.run_once();
        let first = guest.returned(TRANSMIT);
        guest.settle();

        assert!(first <= most, "{first} packets of {len} bytes in a turn");
        assert_eq!(first + guest.returned(TRANSMIT), QUEUE_SIZE);
    }
}

fn device_out_of_service_works_after_a_reset() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    guest.give(3, 1526);
    guest.queues[TRANSMIT].publish(QUEUE_SIZE).unwrap();
    guest.kick(TRANSMIT);
    assert!(guest.needs_reset());
    host.send(&PLAIN, &numbered(HOST, 1));
    guest.settle();
    assert_eq!(guest.queues[RECEIVE].used().unwrap(), None);

    guest.activate();
    guest.give(3, 1526);

    assert_eq!(number(&guest.receive().frame), 1);
    assert!(!guest.needs_reset());
}

cases![
    broken_chain_takes_the_device_out_of_service,
    buffer_given_twice_takes_the_device_out_of_service,
    buffers_may_overlap,
    device_out_of_service_works_after_a_reset,
    flood_of_packets_leaves_others_their_turn,
    index_too_far_ahead_takes_the_device_out_of_service,
    packet_published_twice_is_sent_twice,
    receive_buffer_without_use_takes_the_device_out_of_service,
];
