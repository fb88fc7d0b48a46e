// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each direction ends by itself, and what was sent before its end arrives.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::Duration;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use rstest::rstest;

use crate::guest::{Guest, PORTS, data, packet, pattern, read_now, shutdown};

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[test]
fn guests_half_close_reaches_the_host_and_leaves_the_other_direction_open() {
    let (mut guest, mut host) = Guest::connected();

    guest.send(&data(PORTS, 7), b"request");
    guest.send(&shutdown(PORTS, SHUTDOWN_SEND), &[]);

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
    let (mut guest, mut host) = Guest::connected();

    host.write_all(b"request").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.run();

    assert_eq!(guest.receive().1, b"request");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.send(&data(PORTS, 8), b"response");
    guest.send(&shutdown(PORTS, BOTH), &[]);
    assert_eq!(read_now(&mut host), (b"response".to_vec(), true));
    guest.expect(Op::Rst);
}

#[test]
fn guest_that_takes_no_more_makes_the_host_fail_to_write() {
    let (mut guest, mut host) = Guest::connected();

    guest.send(&shutdown(PORTS, SHUTDOWN_RECEIVE), &[]);

    let error = host.write_all(b"more").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send(&data(PORTS, 5), b"still");
    assert_eq!(read_now(&mut host), (b"still".to_vec(), false));
}

#[test]
fn host_that_reads_no_more_is_told_to_the_guest() {
    let (mut guest, host) = Guest::connected();

    host.shutdown(Shutdown::Read).unwrap();
    guest.send(&data(PORTS, 4), b"more");

    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_RECEIVE);
}

#[test]
fn all_that_the_host_wrote_before_it_closed_arrives() {
    let (mut guest, mut host) = Guest::connected();
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
    let (mut guest, mut host) = Guest::connected_with(limits);
    let sent = pattern(1 << 20, 2);
    for part in sent.chunks(64 * 1024) {
        guest.send(&data(PORTS, part.len()), part);
    }

    let end = if is_clean {
        shutdown(PORTS, BOTH)
    } else {
        packet(PORTS, Op::Rst)
    };
    guest.send(&end, &[]);

    assert!(guest.read_to_end(&mut host) == sent);
}

#[test]
fn ports_of_a_reset_connection_can_be_used_again_while_its_data_is_delivered() {
    let limits = Limits {
        buffer: 1 << 20,
        ..Limits::default()
    };
    let (mut guest, mut first) = Guest::connected_with(limits);
    let sent = pattern(1 << 20, 3);
    guest.send(&data(PORTS, sent.len()), &sent);
    guest.send(&packet(PORTS, Op::Rst), &[]);

    let mut second = guest.connect(PORTS);

    guest.send(&data(PORTS, 3), b"new");
    assert_eq!(read_now(&mut second), (b"new".to_vec(), false));
    assert!(guest.read_to_end(&mut first) == sent);
}

#[test]
fn guest_that_does_not_close_after_both_ends_is_reset() {
    let limits = Limits {
        close_timeout: Duration::from_millis(20),
        ..Limits::default()
    };
    let (mut guest, host) = Guest::connected_with(limits);
    drop(host);
    guest.run();
    guest.expect(Op::Shutdown);
    guest.give_buffers(1, &[4096]);

    let header = guest.wait_for(Guest::try_receive).0;

    assert_eq!(header.op, Op::Rst.number());
    guest.send(&data(PORTS, 1), b"x");
    guest.expect(Op::Rst);
}
