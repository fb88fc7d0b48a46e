// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control queue.

use crate::frames::{HOST, TCP, number, numbered, packet};
use crate::guest::{
    CONTROL, CTRL_GUEST_OFFLOADS, CTRL_RX, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, Guest,
    MRG_RXBUF,
};
use crate::host::{self, PLAIN};

const COMMANDS: u64 = CTRL_VQ | CTRL_RX | CTRL_GUEST_OFFLOADS;

/// Sets the offloads of a driver.
fn offloads(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

fn filters_are_accepted() {
    let (_host, tap) = host::tap();
    let mut guest = Guest::new(tap, COMMANDS);

    assert_eq!(guest.command(&[0, 0, 1]), 0);
    assert_eq!(guest.command(&[0, 1, 1]), 0);
    assert_eq!(guest.command(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
}

fn commands_for_what_is_not_there_are_refused() {
    let (_host, tap) = host::tap();
    let mut guest = Guest::new(tap, COMMANDS | GUEST_CSUM);

    assert_eq!(guest.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 1);
    assert_eq!(guest.command(&[4, 0, 2, 0]), 1);
    assert_eq!(guest.command(&offloads(GUEST_CSUM | GUEST_TSO6)), 1);
    assert!(!guest.needs_reset());
}

fn offloads_are_turned_off_and_on() {
    let (host, tap) = host::tap();
    let wanted = GUEST_CSUM | GUEST_TSO4;
    let mut guest = Guest::new(tap, COMMANDS | MRG_RXBUF | wanted);
    guest.give(100, 1526);
    let packet = packet(HOST, false, TCP, 2000);
    let header = packet.header(1, 1000);

    assert_eq!(guest.command(&offloads(0)), 0);
    host.send(&header, &packet.frame);
    for _ in 0..2 {
        let received = guest.receive();
        assert_eq!(received.header[..2], [0, 0]);
        assert!(packet.is_checksum_right(&received.frame));
    }

    assert_eq!(guest.command(&offloads(wanted)), 0);
    host.send(&header, &packet.frame);
    assert_eq!(guest.receive().frame, packet.frame);
}

fn command_without_room_for_an_answer_takes_the_device_out_of_service() {
    let (_host, tap) = host::tap();
    let mut guest = Guest::new(tap, COMMANDS);
    guest.queues[CONTROL].add(&[&[0, 0, 1]], &[]).unwrap();

    guest.kick(CONTROL);

    assert!(guest.needs_reset());
}

fn driver_without_commands_needs_no_control_queue() {
    let (host, tap) = host::tap();
    let mut guest = Guest::without_control(tap);
    guest.give(1, 1526);

    host.send(&PLAIN, &numbered(HOST, 7));

    assert_eq!(number(&guest.receive().frame), 7);
}

cases![
    command_without_room_for_an_answer_takes_the_device_out_of_service,
    commands_for_what_is_not_there_are_refused,
    driver_without_commands_needs_no_control_queue,
    filters_are_accepted,
    offloads_are_turned_off_and_on,
];
