// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets in both directions, and what the device does when it cannot pass one on.

use crate::frames::{GUEST, HOST, Packet, TCP, frame, number, numbered, packet};
use crate::guest::{self, GUEST_CSUM, GUEST_TSO4, Guest, MRG_RXBUF, QUEUE_SIZE, RECEIVE, TRANSMIT};
use crate::host::{self, PLAIN};

/// A driver that takes long packets in several buffers.
const LONG: u64 = MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;

/// What a long packet looks like, and its header.
fn long(len: usize) -> (Packet, [u8; 10]) {
    let packet = packet(HOST, false, TCP, len);
    let header = packet.header(1, 1448);
    (packet, header)
}

fn packet_reaches_the_host() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    let frame = frame(GUEST, 1514);

    guest.send(&[&guest::PLAIN, &frame]);

    assert_eq!(host.receive(), (PLAIN.to_vec(), frame));
    assert_eq!(guest.queues[TRANSMIT].used().unwrap().unwrap().len, 0);
    assert!(guest.interrupted());
}

fn packet_may_lie_in_any_buffers() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    let frame = frame(GUEST, 1000);
    let packet = [&guest::PLAIN[..], &frame].concat();
    let layouts: [Vec<&[u8]>; 3] = [
        vec![&packet],
        vec![&packet[..5], &packet[5..20], &packet[20..]],
        packet.chunks(16).collect(),
    ];
    assert_eq!(layouts[2].len(), 64);

    for buffers in layouts {
        guest.send(&buffers);
        assert_eq!(host.receive().1, frame);
    }
    let indirect: Vec<_> = packet.chunks(300).collect();
    guest.queues[TRANSMIT].add_indirect(&indirect, &[]).unwrap();
    guest.kick(TRANSMIT);

    assert_eq!(host.receive().1, frame);
}

fn packet_reaches_the_guest() {
    for features in [0, MRG_RXBUF] {
        let (host, tap) = host::tap();
        let mut guest = Guest::new(tap, features);
        guest.give(2, 1526);
        assert!(!guest.interrupted());
        let frame = frame(HOST, 1514);

        host.send(&PLAIN, &frame);

        let expected = guest::Packet {
            header: [&[0; 10][..], &[1, 0]].concat(),
            frame,
            buffers: 1,
        };
        assert_eq!(guest.receive(), expected);
        assert!(guest.interrupted());
    }
}

fn long_packet_lies_in_several_buffers() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, LONG);
    guest.give(100, 1526);
    let (packet, header) = long(60_000);

    host.send(&header, &packet.frame);

    let received = guest.receive();
    assert_eq!(received.header[..10], header);
    assert_eq!(received.buffers, 40);
    assert_eq!(received.frame, packet.frame);
}

fn long_packet_lies_in_one_buffer() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, LONG & !MRG_RXBUF);
    guest.give(1, 65_562);
    let (packet, header) = long(65_400);

    host.send(&header, &packet.frame);

    let received = guest.receive();
    assert_eq!(received.header[..10], header);
    assert_eq!(received.frame, packet.frame);
}

fn packet_without_buffers_waits_in_the_tap() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    host.send(&PLAIN, &numbered(HOST, 1));
    guest.settle();
    assert_eq!(guest.queues[RECEIVE].used().unwrap(), None);

    guest.give(1, 1526);
    assert_eq!(number(&guest.receive().frame), 1);

    host.send(&PLAIN, &numbered(HOST, 2));
    guest.settle();
    assert_eq!(guest.queues[RECEIVE].used().unwrap(), None);
    guest.give(1, 1526);
    assert_eq!(number(&guest.receive().frame), 2);
}

/// Also when the last buffer is filled by the last packet of a turn.
fn more_packets_than_a_turn_takes_arrive() {
    for features in [0, MRG_RXBUF] {
        for buffers in [64, 65, 200] {
            let (host, tap) = host::tap();
            let mut guest = Guest::new(tap, features);
            for number in 0..200 {
                host.send(&PLAIN, &numbered(HOST, number));
            }
            let mut arrived = 0;
            while arrived < 200 {
                guest.give(buffers, 1526);
                for _ in 0..buffers.min(200 - arrived) {
                    let packet = guest.receive();
                    assert_eq!(number(&packet.frame), arrived as u32);
                    arrived += 1;
                }
            }
        }
    }
}

fn more_packets_than_a_turn_takes_are_sent() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    for number in 0..u32::from(QUEUE_SIZE) / 2 {
        let packet = numbered(GUEST, number);
        guest.queues[TRANSMIT]
            .add(&[&guest::PLAIN, &packet], &[])
            .unwrap();
    }

    guest.kick(TRANSMIT);

    for expected in 0..u32::from(QUEUE_SIZE) / 2 {
        assert_eq!(number(&host.receive().1), expected);
    }
}

fn long_packet_waits_for_buffers() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, LONG);
    guest.give(8, 1526);
    let (packet, header) = long(30_000);
    host.send(&header, &packet.frame);
    host.send(&PLAIN, &numbered(HOST, 7));
    guest.settle();
    assert_eq!(guest.queues[RECEIVE].used().unwrap(), None);

    guest.give(30, 1526);

    let received = guest.receive();
    assert_eq!((received.buffers, received.frame), (20, packet.frame));
    assert_eq!(number(&guest.receive().frame), 7);
}

fn packet_too_long_for_the_whole_queue_is_dropped() {
    let (host, tap) = host::tap();
    let mut guest = Guest::with_queues(tap, LONG, 8);
    guest.give(8, 1526);
    let (packet, header) = long(30_000);

    host.send(&header, &packet.frame);
    host.send(&PLAIN, &numbered(HOST, 7));

    assert_eq!(number(&guest.receive().frame), 7);
}

/// The kernel itself would not say that it cut the packet.
fn packet_too_long_for_its_buffer_is_dropped() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    guest.give(2, 100);

    host.send(&PLAIN, &frame(HOST, 89));
    host.send(&PLAIN, &numbered(HOST, 7));

    assert_eq!(number(&guest.receive().frame), 7);
}

fn packet_of_impossible_length_is_not_sent() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    let long = vec![0; 70_000];

    guest.send(&[&[0; 5]]);
    guest.send(&[&guest::PLAIN]);
    guest.send(&[&guest::PLAIN, &[0; 13]]);
    guest.send(&[&guest::PLAIN, &long]);
    guest.queues[TRANSMIT].add(&[], &[100]).unwrap();
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 7)]);

    assert_eq!(number(&host.receive().1), 7);
    assert_eq!(guest.returned(TRANSMIT), 6);
    assert!(!guest.needs_reset());
}

/// What the kernel makes of such headers is its own business.
fn packet_that_the_tap_refuses_is_lost() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, guest::CSUM | guest::HOST_TSO4);
    let mut wrong = guest::PLAIN;
    wrong[..2].copy_from_slice(&[1, 1]);
    wrong[2..10].fill(0xff);

    guest.send(&[&wrong, &frame(GUEST, 200)]);
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 7)]);

    assert_eq!(number(&host.receive().1), 7);
    assert!(!guest.needs_reset());
}

fn worker_sleeps_when_there_is_nothing_to_do() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    guest.give(4, 1526);
    host.send(&PLAIN, &numbered(HOST, 1));
    guest.receive();
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 1)]);
    host.receive();

    guest.settle();
    guest.settle();
}

cases![
    long_packet_lies_in_several_buffers,
    long_packet_waits_for_buffers,
    long_packet_lies_in_one_buffer,
    more_packets_than_a_turn_takes_are_sent,
    more_packets_than_a_turn_takes_arrive,
    packet_may_lie_in_any_buffers,
    packet_of_impossible_length_is_not_sent,
    packet_reaches_the_guest,
    packet_reaches_the_host,
    packet_that_the_tap_refuses_is_lost,
    packet_too_long_for_its_buffer_is_dropped,
    packet_too_long_for_the_whole_queue_is_dropped,
    packet_without_buffers_waits_in_the_tap,
    worker_sleeps_when_there_is_nothing_to_do,
];
