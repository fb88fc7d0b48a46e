// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one side leaves to the other: as much as they agreed on.

use crate::frames::{GUEST, HOST, TCP, UDP, number, numbered, packet};
use crate::guest::{
    self, CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, Guest, HOST_TSO4,
    HOST_TSO6, HOST_USO, MRG_RXBUF,
};
use crate::host::{self, PLAIN};

/// A kind of segmentation: whether it is over IPv6, what is in it, its number, and the features of
/// the driver that takes it and of the one that sends it.
const KINDS: [(bool, u8, u8, u64, u64); 4] = [
    (false, TCP, 1, GUEST_TSO4, HOST_TSO4),
    (true, TCP, 4, GUEST_TSO6, HOST_TSO6),
    (false, UDP, 5, GUEST_USO4 | GUEST_USO6, HOST_USO),
    (true, UDP, 5, GUEST_USO4 | GUEST_USO6, HOST_USO),
];

/// Bytes in a segment.
const SEGMENT: u16 = 1400;

/// The header of a packet to the device.
fn full(header: [u8; 10]) -> Vec<u8> {
    [&header[..], &[0, 0]].concat()
}

fn device_offers_what_the_tap_can_do() {
    let (_host, tap) = host::tap();
    let device = coracle_devices::net::Net::new(tap, GUEST, None).unwrap();

    let offered = coracle_virtio::VirtioDevice::features(&device);

    let expected = CSUM | GUEST_CSUM | MRG_RXBUF;
    assert_eq!(offered & expected, expected);
    for (_, _, _, taken, sent) in KINDS {
        assert_eq!(offered & (taken | sent), taken | sent);
    }
}

fn long_packets_reach_the_host_whole() {
    for (is_v6, protocol, gso_type, _, feature) in KINDS {
        let (host, tap) = host::tap();
        let mut guest = Guest::new(tap, CSUM | feature);
        let packet = packet(GUEST, is_v6, protocol, 40_000);
        let header = packet.header(gso_type, SEGMENT);

        guest.send(&[&full(header), &packet.frame]);

        let (seen, frame) = host.receive();
        assert_eq!(frame, packet.frame);
        assert_eq!(seen[..2], [1, gso_type]);
        assert_eq!(seen[4..6], SEGMENT.to_le_bytes());
    }
}

fn long_packets_reach_the_guest_whole() {
    for (is_v6, protocol, gso_type, feature, _) in KINDS {
        let (host, tap) = host::tap();
        let mut guest = Guest::new(tap, MRG_RXBUF | GUEST_CSUM | feature);
        guest.give(50, 1526);
        let packet = packet(HOST, is_v6, protocol, 40_000);

        host.send(&packet.header(gso_type, SEGMENT), &packet.frame);

        let received = guest.receive();
        assert_eq!(received.frame, packet.frame);
        assert_eq!(received.header[..2], [1, gso_type]);
        assert_eq!(received.header[4..6], SEGMENT.to_le_bytes());
    }
}

fn long_packets_are_cut_for_a_guest_that_cannot() {
    for (is_v6, protocol, gso_type, _, _) in KINDS {
        let (host, tap) = host::tap();
        let mut guest = Guest::new(tap, MRG_RXBUF | GUEST_CSUM);
        guest.give(50, 1526);
        let packet = packet(HOST, is_v6, protocol, 4 * usize::from(SEGMENT));

        host.send(&packet.header(gso_type, SEGMENT), &packet.frame);

        for _ in 0..4 {
            let received = guest.receive();
            assert_eq!(received.header[1], 0);
            assert_eq!(
                received.frame.len(),
                usize::from(packet.payload) + usize::from(SEGMENT)
            );
        }
        assert_eq!(guest.try_receive(), None);
    }
}

fn checksum_is_left_to_the_host() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, CSUM);
    let packet = packet(GUEST, false, UDP, 100);
    let header = packet.header(0, 0);

    guest.send(&[&full(header), &packet.frame]);

    let (seen, frame) = host.receive();
    assert_eq!(frame, packet.frame);
    assert_eq!(seen[0], 1);
    assert_eq!(seen[6..10], header[6..10]);
}

fn checksum_is_left_to_the_guest() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, GUEST_CSUM);
    guest.give(1, 1526);
    let packet = packet(HOST, false, UDP, 100);
    let header = packet.header(0, 0);

    host.send(&header, &packet.frame);

    let received = guest.receive();
    assert_eq!(received.header[0], 1);
    assert_eq!(received.header[6..10], header[6..10]);
    assert!(!packet.is_checksum_right(&received.frame));
}

fn checksum_is_completed_for_a_guest_that_cannot() {
    for is_v6 in [false, true] {
        let (host, tap) = host::tap();
        let mut guest = Guest::new(tap, 0);
        guest.give(1, 1526);
        let packet = packet(HOST, is_v6, UDP, 100);

        host.send(&packet.header(0, 0), &packet.frame);

        let received = guest.receive();
        assert_eq!(received.header[..2], [0, 0]);
        assert!(packet.is_checksum_right(&received.frame));
    }
}

fn what_was_not_agreed_on_is_not_sent() {
    for (is_v6, protocol, gso_type, _, feature) in KINDS {
        let (host, tap) = host::tap();
        let others = KINDS.map(|kind| kind.4).into_iter().fold(0, |a, b| a | b) & !feature;
        let mut guest = Guest::new(tap, CSUM | others);
        let packet = packet(GUEST, is_v6, protocol, 4000);

        guest.send(&[&full(packet.header(gso_type, SEGMENT)), &packet.frame]);
        guest.send(&[&guest::PLAIN, &numbered(GUEST, 7)]);

        assert_eq!(number(&host.receive().1), 7);
    }
}

fn checksum_that_was_not_agreed_on_is_not_sent() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    let packet = packet(GUEST, false, UDP, 100);

    guest.send(&[&full(packet.header(0, 0)), &packet.frame]);
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 7)]);

    assert_eq!(number(&host.receive().1), 7);
}

/// What was put into the tap for a driver that could take it, and is read for one that cannot.
fn packet_for_an_earlier_driver_is_not_delivered() {
    let (host, tap) = host::tap();
    let second = tap.try_clone().unwrap();
    let earlier = Guest::new(tap, GUEST_CSUM | GUEST_TSO4);
    let packet = packet(HOST, false, TCP, 40_000);
    host.send(&packet.header(1, SEGMENT), &packet.frame);
    host.send(&PLAIN, &numbered(HOST, 7));
    drop(earlier);

    let mut guest = Guest::new(second, MRG_RXBUF);
    guest.give(100, 1526);

    assert_eq!(number(&guest.receive().frame), 7);
}

cases![
    checksum_is_completed_for_a_guest_that_cannot,
    checksum_is_left_to_the_guest,
    checksum_is_left_to_the_host,
    checksum_that_was_not_agreed_on_is_not_sent,
    device_offers_what_the_tap_can_do,
    long_packets_are_cut_for_a_guest_that_cannot,
    long_packets_reach_the_guest_whole,
    long_packets_reach_the_host_whole,
    packet_for_an_earlier_driver_is_not_delivered,
    what_was_not_agreed_on_is_not_sent,
];
