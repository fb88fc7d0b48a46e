// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets against the rules: the host stays whole, and whoever keeps to them is served.

use std::io::Write;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Header, Op, SHUTDOWN_SEND};
use rstest::rstest;

use crate::guest::{Guest, PORTS, TX, data, packet, ports, read_now, shutdown};

#[rstest]
#[case::unknown_operation(Header { op: 99, ..packet(ports(1, 1), Op::Rw) }, 2)]
#[case::operation_zero(Header { op: 0, ..packet(ports(1, 1), Op::Rw) }, 2)]
#[case::unknown_type(Header { socket_type: 7, ..packet(ports(52, 1), Op::Request) }, 2)]
#[case::seqpacket(Header { socket_type: 2, ..packet(ports(52, 1), Op::Request) }, 2)]
#[case::other_receiver(Header { dst_cid: 77, ..packet(ports(52, 1), Op::Request) }, 77)]
#[case::other_sender(Header { src_cid: 77, ..packet(ports(52, 1), Op::Request) }, 2)]
#[case::data_without_connection(packet(ports(52, 1), Op::Rw), 2)]
#[case::response_without_request(packet(ports(52, 1), Op::Response), 2)]
#[case::shutdown_without_connection(shutdown(ports(52, 1), SHUTDOWN_SEND), 2)]
#[case::credit_without_connection(packet(ports(52, 1), Op::CreditUpdate), 2)]
fn packet_that_belongs_nowhere_is_answered_with_a_reset(#[case] sent: Header, #[case] from: u64) {
    let mut guest = Guest::new();

    guest.send(&sent, &[]);

    let reset = guest.expect(Op::Rst);
    assert_eq!(
        (reset.src_cid, reset.src_port, reset.dst_port),
        (from, sent.dst_port, sent.src_port)
    );
    assert_eq!(reset.socket_type, sent.socket_type);
}

#[rstest]
#[case::of_no_connection(packet(ports(1, 1), Op::Rst))]
#[case::of_another_type(Header { socket_type: 7, ..packet(ports(1, 1), Op::Rst) })]
#[case::to_somebody_else(Header { dst_cid: 77, ..packet(ports(1, 1), Op::Rst) })]
fn reset_is_never_answered(#[case] sent: Header) {
    let mut guest = Guest::new();

    guest.send(&sent, &[]);

    guest.expect_nothing();
    guest.assert_served();
}

#[test]
fn packet_of_another_type_does_not_touch_the_connection_of_its_ports() {
    let (mut guest, mut host) = Guest::connected();

    let odd = Header {
        socket_type: 2,
        ..packet(PORTS, Op::Rst)
    };
    guest.send(&odd, &[]);

    guest.send(&data(PORTS, 5), b"alive");
    assert_eq!(read_now(&mut host), (b"alive".to_vec(), false));
}

#[test]
fn data_beyond_the_credit_resets_the_connection_and_what_was_within_it_arrives() {
    let limits = Limits {
        buffer: 10,
        ..Limits::default()
    };
    let (mut guest, mut host) = Guest::connected_with(limits);

    guest.send(&data(PORTS, 10), b"0123456789");
    guest.send(&data(PORTS, 11), b"01234567890");

    guest.expect(Op::Rst);
    assert_eq!(read_now(&mut host), (b"0123456789".to_vec(), true));
}

#[test]
fn bytes_after_a_packets_data_are_no_data() {
    let (mut guest, mut host) = Guest::connected();

    guest.send(&data(PORTS, 4), b"data and more");

    assert_eq!(read_now(&mut host), (b"data".to_vec(), false));
}

#[rstest]
#[case::nothing(1)]
#[case::half_a_header(22)]
#[case::all_but_a_byte(43)]
fn packet_without_a_header_is_passed_over(#[case] len: usize) {
    let mut guest = Guest::new();

    guest.add_pieces(&[&packet(ports(1, 1), Op::Request).to_bytes()[..len]]);
    guest.kick(TX);

    guest.expect_nothing();
    guest.assert_served();
}

#[rstest]
#[case::one_byte_short(27)]
#[case::as_long_as_can_be(u32::MAX as usize)]
fn packet_without_its_data_resets_the_connection(#[case] announced: usize) {
    let (mut guest, mut host) = Guest::connected();

    guest.send(&data(PORTS, announced), b"abcdefghijklmnopqrstuvwxyz");

    guest.expect(Op::Rst);
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    guest.assert_served();
}

#[test]
fn guest_that_lies_about_its_credit_gets_no_more_than_it_says_it_has_room_for() {
    let (mut guest, mut host) = Guest::connected();
    let lie = Header {
        buf_alloc: 10,
        fwd_cnt: 0xffff_fff0,
        ..packet(PORTS, Op::CreditUpdate)
    };
    guest.send(&lie, &[]);

    host.write_all(&[1; 100]).unwrap();
    guest.run();

    assert_eq!(guest.receive().1.len(), 10);
    guest.expect(Op::CreditRequest);
    guest.expect_nothing();
}
