// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that does what no driver does: the host stays whole, and whoever keeps to the rules is
//! served.

mod guest;

use std::io::{Read, Write};

use coracle_memory::GuestAddress;
use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor};
use coracle_vsock::Limits;
use coracle_vsock::packet::{HEADER_LEN, Header, Op, SHUTDOWN_SEND};
use guest::{Guest, RX, TX, data, packet, pattern, ports, read_now, shutdown};
use proptest::prelude::*;
use rstest::rstest;

/// The device does its work for a connection made now.
fn assert_served(guest: &mut Guest) {
    let ports = ports(900, 900);
    let listener = guest.listen(ports.host);
    let mut host = guest.connect(&listener, ports);
    guest.send(&data(ports, 5), b"hello");
    assert_eq!(read_now(&mut host), (b"hello".to_vec(), false));
}

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
    let _listener = guest.listen(52);

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
    assert_served(&mut guest);
}

#[test]
fn packet_of_another_type_does_not_touch_the_connection_of_its_ports() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut host = guest.connect(&listener, ports(52, 1));

    let odd = Header {
        socket_type: 2,
        ..packet(ports(52, 1), Op::Rst)
    };
    guest.send(&odd, &[]);

    guest.send(&data(ports(52, 1), 5), b"alive");
    assert_eq!(read_now(&mut host), (b"alive".to_vec(), false));
}

#[test]
fn data_beyond_the_credit_resets_the_connection_and_what_was_within_it_arrives() {
    let limits = Limits {
        buffer: 10,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);

    guest.send(&data(ports, 10), b"0123456789");
    guest.send(&data(ports, 11), b"01234567890");

    guest.expect(Op::Rst);
    assert_eq!(read_now(&mut host), (b"0123456789".to_vec(), true));
}

#[rstest]
#[case::one_descriptor(&[44 + 26])]
#[case::header_and_data(&[44, 26])]
#[case::header_in_two(&[20, 24, 26])]
#[case::header_with_some_data(&[50, 20])]
#[case::data_in_three(&[44, 1, 20, 5])]
#[case::cut_across(&[30, 30, 10])]
#[case::each_byte(&[1; 70])]
fn packet_may_be_cut_anywhere(#[case] pieces: &[usize]) {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);
    let mut bytes = data(ports, 26).to_bytes().to_vec();
    bytes.extend(b'a'..=b'z');
    let mut rest = &bytes[..];
    let cut: Vec<&[u8]> = pieces
        .iter()
        .map(|&len| rest.split_off(..len).unwrap())
        .collect();

    guest.add_pieces(&cut);
    guest.kick(TX);

    assert_eq!(read_now(&mut host), (bytes[HEADER_LEN..].to_vec(), false));
}

#[rstest]
#[case::one_descriptor(&[70])]
#[case::header_and_data(&[44, 26])]
#[case::cut_across(&[30, 30, 30])]
#[case::each_byte(&[1; 70])]
fn buffer_may_be_cut_anywhere(#[case] pieces: &[u32]) {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut host = guest.connect(&listener, ports(52, 1));
    guest.give_buffers(1, pieces);

    host.write_all(b"abcdefghijklmnopqrstuvwxyz").unwrap();
    guest.run();

    let (_, bytes) = guest.try_receive().unwrap();
    assert_eq!(bytes, b"abcdefghijklmnopqrstuvwxyz");
}

#[test]
fn bytes_after_a_packets_data_are_no_data() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);

    guest.send(&data(ports, 4), b"data and more");

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
    assert_served(&mut guest);
}

#[rstest]
#[case::one_byte_short(27)]
#[case::as_long_as_can_be(u32::MAX as usize)]
fn packet_without_its_data_resets_the_connection(#[case] announced: usize) {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);

    guest.send(&data(ports, announced), b"abcdefghijklmnopqrstuvwxyz");

    guest.expect(Op::Rst);
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    assert_served(&mut guest);
}

#[rstest]
#[case::no_room_for_a_header(&[43])]
#[case::no_room_for_data(&[44])]
fn buffer_that_is_too_small_is_given_back(#[case] small: &[u32]) {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut host = guest.connect(&listener, ports(52, 1));
    host.write_all(b"data").unwrap();

    guest.give_buffers(20, small);

    assert_eq!(guest.receive().1, b"data");
}

const MEMORY_END: u64 = 384 << 20;
const AFTER_HOLE: u64 = 512 << 20;
const ADJACENT: u64 = 640 << 20;

/// A transmit chain of a header in memory and data anywhere.
fn send_data_at(guest: &mut Guest, header: &Header, address: u64, len: u32) {
    let place = GuestAddress(MEMORY_END - 4096);
    guest.memory.write(place, &header.to_bytes()).unwrap();
    let head = Descriptor {
        address: place.0,
        len: HEADER_LEN as u32,
        flags: DESC_NEXT,
        next: 101,
    };
    let tail = Descriptor {
        address,
        len,
        flags: 0,
        next: 0,
    };
    guest.drivers[TX].put(100, head).unwrap();
    guest.drivers[TX].put(101, tail).unwrap();
    guest.drivers[TX].publish(100).unwrap();
    guest.kick(TX);
}

#[rstest]
#[case::past_the_end_of_a_region(MEMORY_END - 10, 26)]
#[case::over_two_regions_with_a_hole_between(MEMORY_END - 10, (AFTER_HOLE - MEMORY_END) as u32 + 26)]
#[case::in_the_hole(MEMORY_END, 26)]
#[case::around_the_end_of_addresses(u64::MAX - 10, 26)]
fn data_outside_memory_stops_the_device_until_its_reset(#[case] address: u64, #[case] len: u32) {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);

    send_data_at(&mut guest, &data(ports, 26), address, len);

    assert!(guest.needs_reset());
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    guest.activate();
    assert_served(&mut guest);
}

#[test]
fn data_over_two_adjacent_regions_is_whole() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);
    let bytes = pattern(100, 4);
    guest
        .memory
        .write(GuestAddress(ADJACENT - 50), &bytes)
        .unwrap();

    send_data_at(&mut guest, &data(ports, 100), ADJACENT - 50, 100);

    assert_eq!(read_now(&mut host), (bytes, false));
}

#[rstest]
#[case::past_the_end_of_a_region(MEMORY_END - 50, 100)]
#[case::in_the_hole(MEMORY_END, 100)]
#[case::around_the_end_of_addresses(u64::MAX - 50, 100)]
fn buffer_outside_memory_stops_the_device(#[case] address: u64, #[case] len: u32) {
    let mut guest = Guest::new();
    let buffer = Descriptor {
        address,
        len,
        flags: DESC_WRITE,
        next: 0,
    };
    guest.drivers[RX].put(100, buffer).unwrap();
    guest.drivers[RX].publish(100).unwrap();

    guest.send(&packet(ports(1, 1), Op::Request), &[]);

    assert!(guest.needs_reset());
}

#[test]
fn buffer_offered_twice_while_the_device_holds_it_is_filled_once_at_a_time() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut host = guest.connect(&listener, ports(52, 1));
    host.write_all(b"x").unwrap();
    guest.run();
    assert_eq!(guest.receive().1, b"x");
    // There might be more data, so the device takes this buffer, and keeps it when there is none.
    let head = guest.drivers[RX].add(&[], &[4096]).unwrap();
    guest.kick(RX);

    guest.drivers[RX].publish(head).unwrap();
    guest.kick(RX);
    assert_eq!(guest.drivers[RX].used().unwrap(), None);
    guest.add(&packet(ports(1, 1), Op::Request), &[]);
    guest.add(&packet(ports(1, 2), Op::Request), &[]);
    guest.kick(TX);

    let heads: Vec<u32> = std::iter::from_fn(|| guest.drivers[RX].used().unwrap())
        .map(|used| used.head)
        .collect();
    assert_eq!(heads, [u32::from(head); 2]);
    assert_served(&mut guest);
}

#[test]
fn index_far_ahead_stops_the_device() {
    let mut guest = Guest::new();

    guest.drivers[TX].set_avail_index(257).unwrap();
    guest.kick(TX);

    assert!(guest.needs_reset());
    assert_eq!(guest.workers.run(), 0);
}

#[test]
fn answers_that_nobody_takes_hold_up_the_guest_and_nobody_loses_one() {
    let mut guest = Guest::new();
    for guest_port in 0..256 {
        guest.add(&packet(ports(1, guest_port), Op::Request), &[]);
    }
    guest.kick(TX);
    for guest_port in 256..300 {
        guest.add(&packet(ports(1, guest_port), Op::Rw), &[]);
    }
    guest.kick(TX);

    // Of those that need an answer which can only be queued, 256 were handled at most.
    let mut answers = 0;
    guest.give_buffers(256, &[64]);
    while guest.try_receive().is_some() {
        answers += 1;
    }
    guest.give_buffers(100, &[64]);
    while guest.try_receive().is_some() {
        answers += 1;
    }

    assert_eq!(answers, 300);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_those_within_it_are_served() {
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);
    let mut hosts: Vec<_> = (1..=3)
        .map(|port| guest.connect(&listener, ports(52, port)))
        .collect();

    guest.send(&packet(ports(52, 4), Op::Request), &[]);
    guest.expect(Op::Rst);
    let mut refused = guest.host_connects("CONNECT 1\n");
    guest.run();
    assert!(!matches!(refused.read(&mut [0; 8]), Ok(1..)));

    guest.send(&data(ports(52, 3), 5), b"hello");
    assert_eq!(read_now(&mut hosts[2]), (b"hello".to_vec(), false));
    guest.send(&packet(ports(52, 1), Op::Rst), &[]);
    guest.connect(&listener, ports(52, 4));
}

#[test]
fn connections_made_and_reset_without_end_leave_nothing_behind() {
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);

    for guest_port in 0..1000 {
        guest.add(&packet(ports(52, guest_port), Op::Request), &[]);
        guest.add(&packet(ports(52, guest_port), Op::Rst), &[]);
        guest.kick(TX);
        assert_eq!(
            read_now(&mut listener.accept().unwrap().0),
            (Vec::new(), true)
        );
    }

    guest.connect(&listener, ports(52, 1));
}

#[test]
fn guest_that_lies_about_its_credit_gets_no_more_than_it_says_it_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1);
    let mut host = guest.connect(&listener, ports);
    let lie = Header {
        buf_alloc: 10,
        fwd_cnt: 0xffff_fff0,
        ..packet(ports, Op::CreditUpdate)
    };
    guest.send(&lie, &[]);

    host.write_all(&[1; 100]).unwrap();
    guest.run();

    assert_eq!(guest.receive().1.len(), 10);
    guest.expect(Op::CreditRequest);
    guest.expect_nothing();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever chains of bytes a guest sends, the device answers or resets, and serves whoever
    /// comes after.
    #[test]
    fn no_packets_break_the_device(
        packets in proptest::collection::vec(
            (
                0_u16..9,
                50_u32..54,
                0_u32..3,
                prop_oneof![0_u32..200, any::<u32>()],
                0_u32..4,
                prop_oneof![0_u32..100, any::<u32>()],
                any::<u32>(),
                0_usize..200,
            ),
            0..60,
        ),
        host_data in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let limits = Limits { connections: 3, buffer: 150, ..Limits::default() };
        let mut guest = Guest::with_limits(limits);
        let listener = guest.listen(52);
        let mut hosts = Vec::new();
        guest.give_buffers(50, &[100]);

        for (op, host, port, len, flags, buf_alloc, fwd_cnt, held) in packets {
            let header = Header {
                op, len, flags, buf_alloc, fwd_cnt, ..packet(ports(host, port), Op::Rw)
            };
            guest.send(&header, &vec![0; held]);
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                let _ = (&stream).write(&host_data);
                hosts.push(stream);
            }
            guest.run();
            while guest.try_receive().is_some() {}
        }

        prop_assert!(!guest.needs_reset());
        drop(hosts);
        for port in 0..3 {
            for host in 50..54 {
                guest.send(&packet(ports(host, port), Op::Rst), &[]);
            }
        }
        guest.give_buffers(100, &[100]);
        while guest.try_receive().is_some() {}
        assert_served(&mut guest);
    }
}
