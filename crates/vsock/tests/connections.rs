// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections between a guest and programs of the host, through the device.

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use guest::{EVENT, Guest, data, packet, pattern, ports, read_now, shutdown};
use rstest::rstest;

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[test]
fn guest_connects_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);

    let mut host = guest.connect(&listener, ports);

    guest.send(&data(ports, 5), b"hello");
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
    let path = guest.path(Some(52));
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
    guest.send(&packet(ports(52, 1), Op::Request), &[]);
    guest.expect(Op::Response);
    guest.send(&packet(ports(52, 2), Op::Request), &[]);
    guest.expect_nothing();

    let _first = listener.accept().unwrap();

    let header = guest.wait_for(Guest::try_receive).0;
    assert_eq!((header.op, header.dst_port), (Op::Response.number(), 2));
}

#[test]
fn guests_half_close_reaches_the_host_and_leaves_the_other_direction_open() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut host = guest.connect(&listener, ports);

    guest.send(&data(ports, 7), b"request");
    guest.send(&shutdown(ports, SHUTDOWN_SEND), &[]);

    assert_eq!(read_now(&mut host), (b"request".to_vec(), true));
    host.write_all(b"response").unwrap();
    guest.run();
    assert_eq!(guest.receive().1, b"response");
    drop(host);
    guest.run();
    assert_eq!(guest.expect(Op::Shutdown).flags, BOTH);
}

#[test]
fn hosts_half_close_reaches_the_guest_and_leaves_the_other_direction_open() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut host = guest.connect(&listener, ports);

    host.write_all(b"request").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.run();

    assert_eq!(guest.receive().1, b"request");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.send(&data(ports, 8), b"response");
    guest.send(&shutdown(ports, BOTH), &[]);
    assert_eq!(read_now(&mut host), (b"response".to_vec(), true));
    guest.expect(Op::Rst);
}

#[test]
fn guest_that_takes_no_more_makes_the_host_fail_to_write() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut host = guest.connect(&listener, ports);

    guest.send(&shutdown(ports, SHUTDOWN_RECEIVE), &[]);

    let error = host.write_all(b"more").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send(&data(ports, 5), b"still");
    assert_eq!(read_now(&mut host), (b"still".to_vec(), false));
}

#[test]
fn host_that_reads_no_more_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let host = guest.connect(&listener, ports);

    host.shutdown(Shutdown::Read).unwrap();
    guest.send(&data(ports, 4), b"more");

    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_RECEIVE);
}

#[test]
fn all_that_the_host_wrote_before_it_closed_arrives() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut host = guest.connect(&listener, ports);
    let sent = pattern(100_000, 1);
    let len = host.write(&sent).unwrap();
    drop(host);
    guest.run();

    let mut came = Vec::new();
    let end = loop {
        let (header, bytes) = guest.receive();
        came.extend(bytes);
        if header.flags & SHUTDOWN_SEND != 0 {
            break header;
        }
    };

    assert!(came == sent[..len]);
    assert_eq!(end.flags, BOTH);
}

#[rstest]
#[case::clean_close(true)]
#[case::reset(false)]
fn all_that_the_guest_sent_before_it_closed_arrives(#[case] is_clean: bool) {
    let limits = Limits {
        buffer: 1 << 20,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut host = guest.connect(&listener, ports);
    let sent = pattern(1 << 20, 2);
    for part in sent.chunks(64 * 1024) {
        guest.send(&data(ports, part.len()), part);
    }

    let end = if is_clean {
        shutdown(ports, BOTH)
    } else {
        packet(ports, Op::Rst)
    };
    guest.send(&end, &[]);

    let mut came = Vec::new();
    guest.wait_for(|_| {
        let (bytes, end) = read_now(&mut host);
        came.extend(bytes);
        end.then_some(())
    });
    assert!(came == sent);
}

#[test]
fn ports_of_a_reset_connection_can_be_used_again_while_its_data_is_delivered() {
    let limits = Limits {
        buffer: 1 << 20,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    let mut first = guest.connect(&listener, ports);
    let sent = pattern(1 << 20, 3);
    guest.send(&data(ports, sent.len()), &sent);
    guest.send(&packet(ports, Op::Rst), &[]);

    let mut second = guest.connect(&listener, ports);

    guest.send(&data(ports, 3), b"new");
    assert_eq!(read_now(&mut second), (b"new".to_vec(), false));
    let mut came = Vec::new();
    guest.wait_for(|_| {
        let (bytes, end) = read_now(&mut first);
        came.extend(bytes);
        end.then_some(())
    });
    assert!(came == sent);
}

#[test]
fn guest_that_does_not_close_after_both_ends_is_reset() {
    let limits = Limits {
        close_timeout: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let listener = guest.listen(52);
    let ports = ports(52, 1000);
    drop(guest.connect(&listener, ports));
    guest.run();
    guest.expect(Op::Shutdown);
    guest.give_buffers(1, &[4096]);

    let header = guest.wait_for(Guest::try_receive).0;

    assert_eq!(header.op, Op::Rst.number());
    guest.send(&data(ports, 1), b"x");
    guest.expect(Op::Rst);
}

#[test]
fn host_that_does_not_read_holds_up_only_itself() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let (slow_ports, quick_ports) = (ports(52, 1), ports(52, 2));
    let mut slow = guest.connect(&listener, slow_ports);
    let mut quick = guest.connect(&listener, quick_ports);
    let credit = Limits::default().buffer as usize;
    let part = vec![7; 16 * 1024];
    // Fill the socket and then the buffer: the last part is what fits.
    let mut sent = 0;
    let mut known = 0;
    loop {
        while let Some((header, _)) = guest.try_receive() {
            known = header.fwd_cnt as usize;
        }
        if sent + part.len() > known + credit {
            break;
        }
        guest.send(&data(slow_ports, part.len()), &part);
        guest.give_buffers(1, &[4096]);
        sent += part.len();
    }

    guest.send(&data(quick_ports, 5), b"quick");

    assert_eq!(read_now(&mut quick), (b"quick".to_vec(), false));
    let mut came = 0;
    guest.wait_for(|_| {
        came += read_now(&mut slow).0.len();
        (came == sent).then_some(())
    });
}

#[test]
fn guest_without_room_for_one_connection_has_the_others_served() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let (full, open) = (ports(52, 1), ports(52, 2));
    let mut to_full = guest.connect(&listener, full);
    let mut to_open = guest.connect(&listener, open);
    let no_room = coracle_vsock::packet::Header {
        buf_alloc: 0,
        ..packet(full, Op::CreditUpdate)
    };
    guest.send(&no_room, &[]);

    to_full.write_all(b"stuck").unwrap();
    to_open.write_all(b"through").unwrap();
    guest.run();

    assert_eq!(guest.expect(Op::CreditRequest).dst_port, 1);
    assert_eq!(guest.receive().1, b"through");
    guest.expect_nothing();
    guest.send(&packet(full, Op::CreditUpdate), &[]);
    assert_eq!(guest.receive().1, b"stuck");
}

#[test]
fn transport_reset_drops_connections_and_tells_the_guest() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut host = guest.connect(&listener, ports(52, 1000));
    guest.drivers[EVENT].add(&[], &[4]).unwrap();
    guest.kick(EVENT);
    assert_eq!(guest.drivers[EVENT].used().unwrap(), None);

    guest.handle.transport_reset();
    guest.run();

    assert_eq!(read_now(&mut host), (Vec::new(), true));
    let event = guest.drivers[EVENT].used().unwrap().unwrap();
    assert_eq!(event.data, [0; 4]);
    guest.connect(&listener, ports(52, 1000));
}

#[test]
fn transport_reset_waits_for_the_guests_buffer() {
    let mut guest = Guest::new();
    guest.handle.transport_reset();
    guest.run();

    guest.drivers[EVENT].add(&[], &[4]).unwrap();
    guest.kick(EVENT);

    let event = guest.drivers[EVENT].used().unwrap().unwrap();
    assert_eq!(event.data, [0; 4]);
}

#[test]
fn device_works_again_after_a_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut old = guest.connect(&listener, ports(52, 1000));

    guest.activate();

    assert_eq!(read_now(&mut old), (Vec::new(), true));
    let mut host = guest.connect(&listener, ports(52, 1000));
    guest.send(&data(ports(52, 1000), 3), b"new");
    assert_eq!(read_now(&mut host), (b"new".to_vec(), false));
    let _another = guest.host_connects("CONNECT 5\n");
    guest.run();
    guest.expect(Op::Request);
}

#[test]
fn host_that_connects_while_there_is_no_driver_is_served_later() {
    let mut guest = Guest::new();
    coracle_virtio::testing::write_register(
        &mut guest.transport,
        coracle_virtio::Register::Status,
        0,
    );
    let _host = guest.host_connects("CONNECT 5\n");

    guest.activate();
    guest.run();

    assert_eq!(guest.expect(Op::Request).dst_port, 5);
}

#[test]
fn batch_of_packets_costs_one_interrupt() {
    let mut guest = Guest::new();
    guest.give_buffers(8, &[4096]);
    let line = guest.interrupt.line().try_clone().unwrap();
    let _ = line.read();

    for guest_port in 0..8 {
        guest.add(&packet(ports(9, guest_port), Op::Request), &[]);
    }
    guest.kick(guest::TX);

    assert_eq!(line.read().unwrap(), 1);
    assert_eq!(std::iter::from_fn(|| guest.try_receive()).count(), 8);
}
