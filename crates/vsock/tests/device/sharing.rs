// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections beside each other: none holds up another.

use std::io::Write;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Header, Op};

use crate::guest::{Guest, TX, data, packet, ports, read_now};

#[test]
fn host_that_does_not_read_holds_up_only_itself() {
    let mut guest = Guest::new();
    let (slow_ports, quick_ports) = (ports(52, 1), ports(52, 2));
    let mut slow = guest.connect(slow_ports);
    let mut quick = guest.connect(quick_ports);
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
    let (full, open) = (ports(52, 1), ports(52, 2));
    let mut to_full = guest.connect(full);
    let mut to_open = guest.connect(open);
    let no_room = Header {
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
fn batch_of_packets_costs_one_interrupt() {
    let mut guest = Guest::new();
    guest.give_buffers(8, &[4096]);
    let line = guest.interrupt.line().try_clone().unwrap();
    let _ = line.read();

    for guest_port in 0..8 {
        guest.add(&packet(ports(9, guest_port), Op::Request), &[]);
    }
    guest.kick(TX);

    assert_eq!(line.read().unwrap(), 1);
    assert_eq!(std::iter::from_fn(|| guest.try_receive()).count(), 8);
}
