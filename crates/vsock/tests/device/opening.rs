// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection is asked for, by either side.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use coracle_vsock::Limits;
use coracle_vsock::packet::Op;
use rstest::rstest;

use crate::guest::{Guest, PORTS, data, packet, ports, read_now};

#[test]
fn guest_connects_and_data_goes_both_ways() {
    let (mut guest, mut host) = Guest::connected();

    guest.send(&data(PORTS, 5), b"hello");
    assert_eq!(read_now(&mut host), (b"hello".to_vec(), false));
    host.write_all(b"and to you").unwrap();
    let (header, bytes) = guest.wait_for(|guest| Some(guest.receive()));
    assert_eq!(header.op, Op::Rw.number());
    assert_eq!(
        (header.src_cid, header.src_port, header.dst_port),
        (2, 52, 1000)
    );
    assert_eq!(bytes, b"and to you");
}

#[test]
fn host_connects_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let mut host = guest.host_connects("CONNECT 1024\nearly");
    guest.run();

    let request = guest.expect(Op::Request);
    assert_eq!(request.dst_port, 1024);
    assert_eq!(read_now(&mut host), (Vec::new(), false));

    let ports = ports(request.src_port, 1024);
    guest.send(&packet(ports, Op::Response), &[]);

    let ok = format!("OK {}\n", ports.host);
    assert_eq!(read_now(&mut host), (ok.into_bytes(), false));
    let (_, bytes) = guest.receive();
    assert_eq!(bytes, b"early");
    guest.send(&data(ports, 4), b"late");
    assert_eq!(read_now(&mut host), (b"late".to_vec(), false));
}

#[test]
fn hosts_request_may_come_in_pieces() {
    let mut guest = Guest::new();
    let mut host = guest.host_connects("CONN");
    guest.run();
    guest.expect_nothing();

    host.write_all(b"ECT 7\n").unwrap();

    guest.run();
    assert_eq!(guest.expect(Op::Request).dst_port, 7);
}

#[rstest]
#[case::no_request("hello\n")]
#[case::port_too_large("CONNECT 4294967296\n")]
#[case::no_end("CONNECT                                  ")]
fn host_that_asks_for_nothing_sees_its_end(#[case] line: &str) {
    let mut guest = Guest::new();
    let mut host = guest.host_connects(line);

    guest.run();

    // Bytes that nobody took may make an error of the end.
    let end = host.read(&mut [0; 8]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)));
    guest.expect_nothing();
}

#[test]
fn host_sees_its_end_without_ok_if_the_guest_refuses() {
    let mut guest = Guest::new();
    let mut host = guest.host_connects("CONNECT 1024\n");
    guest.run();
    let request = guest.expect(Op::Request);

    guest.send(&packet(ports(request.src_port, 1024), Op::Rst), &[]);

    assert_eq!(read_now(&mut host), (Vec::new(), true));
}

#[test]
fn host_sees_its_end_without_ok_if_the_guest_does_not_answer() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let mut host = guest.host_connects("CONNECT 1024\n");
    guest.run();
    guest.expect(Op::Request);

    let read = guest.wait_for(|_| Some(read_now(&mut host)).filter(|(_, end)| *end));

    assert_eq!(read.0, b"");
    guest.expect(Op::Rst);
}

#[test]
fn two_hosts_have_two_ports() {
    let mut guest = Guest::new();
    let _first = guest.host_connects("CONNECT 1024\n");
    let _second = guest.host_connects("CONNECT 1024\n");
    guest.run();

    let (first, second) = (guest.expect(Op::Request), guest.expect(Op::Request));

    assert_ne!(first.src_port, second.src_port);
}

#[test]
fn port_that_nobody_listens_on_is_refused() {
    let mut guest = Guest::new();

    guest.send(&packet(ports(53, 1000), Op::Request), &[]);

    let reset = guest.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port), (53, 1000));
}

#[test]
fn listener_without_room_is_tried_again() {
    let mut guest = Guest::new();
    let path = guest.path(Some(54));
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let listener = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = std::os::unix::net::UnixListener::from(listener);
    guest.send(&packet(ports(54, 1), Op::Request), &[]);
    guest.expect(Op::Response);
    guest.send(&packet(ports(54, 2), Op::Request), &[]);
    guest.expect_nothing();

    let _first = listener.accept().unwrap();

    let header = guest.wait_for(Guest::try_receive).0;
    assert_eq!((header.op, header.dst_port), (Op::Response.number(), 2));
}
