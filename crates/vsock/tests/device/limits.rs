// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much a guest may use.

use std::io::Read;

use coracle_vsock::Limits;
use coracle_vsock::packet::Op;

use crate::guest::{Guest, TX, data, packet, ports, read_now};

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
    let mut hosts: Vec<_> = (1..=3).map(|port| guest.connect(ports(52, port))).collect();

    guest.send(&packet(ports(52, 4), Op::Request), &[]);
    guest.expect(Op::Rst);
    let mut refused = guest.host_connects("CONNECT 1\n");
    guest.run();
    assert!(!matches!(refused.read(&mut [0; 8]), Ok(1..)));

    guest.send(&data(ports(52, 3), 5), b"hello");
    assert_eq!(read_now(&mut hosts[2]), (b"hello".to_vec(), false));
    guest.send(&packet(ports(52, 1), Op::Rst), &[]);
    guest.connect(ports(52, 4));
}

#[test]
fn connections_made_and_reset_without_end_leave_nothing_behind() {
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);

    for guest_port in 0..1000 {
        guest.add(&packet(ports(52, guest_port), Op::Request), &[]);
        guest.add(&packet(ports(52, guest_port), Op::Rst), &[]);
        guest.kick(TX);
        let mut host = guest.accept().unwrap();
        assert_eq!(read_now(&mut host), (Vec::new(), true));
    }

    guest.connect(ports(52, 1));
}
