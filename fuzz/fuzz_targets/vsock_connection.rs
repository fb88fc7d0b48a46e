// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection under any sequence of packets and host events: it holds no more than its buffer,
//! sends no more than the guest has room for, never answers for ever, and stays over once it is.
#![no_main]

use arbitrary::Arbitrary;
use coracle_vsock::connection::{Connection, Due, Phase, Received};
use coracle_vsock::packet::{Header, Op, Ports};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    capacity: u32,
    asked_by_guest: Option<Packet>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Packet {
    op: u8,
    len: u32,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Receive(Packet),
    /// Sends what is due; of data at most so many bytes.
    Send(u32),
    Forward(u32),
    Accept,
    Reset,
    Expire,
    HostReadable,
    HostBlocked,
    HostEnded,
    HostClosed,
}

impl Packet {
    fn header(self) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1,
            dst_port: 2,
            socket_type: 1,
            op: u16::from(self.op % 10),
            len: self.len,
            flags: self.flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }
}

/// Sends packets without data until there are none, or there is data.
fn settle(connection: &mut Connection) {
    for _ in 0..8 {
        let Due::Control(op) = connection.due() else {
            return;
        };
        let header = connection.control(op);
        assert_eq!(header.op, op.number());
        assert_eq!(header.len, 0);
    }
    panic!("a connection sends packets without end: {connection:?}");
}

fuzz_target!(|input: Input| {
    let capacity = input.capacity.max(1);
    let mut connection = match input.asked_by_guest {
        Some(packet) => Connection::from_guest(3, &packet.header(), capacity),
        None => Connection::from_host(3, Ports { host: 2, guest: 1 }, capacity),
    };
    let mut held = 0_u64;
    let mut room = input.asked_by_guest.map_or(0, |packet| packet.buf_alloc);

    for step in input.steps {
        let was_over = connection.phase() == Phase::Over;
        match step {
            Step::Receive(packet) => {
                room = packet.buf_alloc;
                match connection.receive(&packet.header()) {
                    Received::Data => held += u64::from(packet.len),
                    Received::Accepted => assert!(!was_over),
                    _ => {}
                }
            }
            Step::Send(most) => match connection.due() {
                Due::Nothing => {}
                Due::Control(op) => {
                    connection.control(op);
                }
                Due::Data(window) => {
                    assert!(0 < window && window <= room);
                    let len = window.min(most);
                    if len == 0 {
                        connection.host_blocked();
                    } else {
                        assert_eq!(connection.data(len).len, len);
                    }
                }
            },
            Step::Forward(len) => {
                let len = held.min(u64::from(len));
                held -= len;
                connection.forwarded(len as u32);
            }
            Step::Accept => connection.accept(),
            Step::Reset => connection.reset(),
            Step::Expire => connection.expire(),
            Step::HostReadable => connection.host_readable(),
            Step::HostBlocked => connection.host_blocked(),
            Step::HostEnded => connection.host_ended(),
            Step::HostClosed => {
                held = 0;
                connection.host_closed();
            }
        }
        assert!(
            held <= u64::from(capacity),
            "more is held than the buffer has room for"
        );
        assert_eq!(connection.drained(), held == 0);
        settle(&mut connection.clone());
        if was_over {
            assert_eq!(connection.phase(), Phase::Over);
            assert_eq!(connection.due(), Due::Nothing);
        }
    }

    // Whatever happened, a reset frees the connection.
    let _ = connection.receive(&Header {
        op: Op::Rst.number(),
        ..Header::default()
    });
    connection.forwarded(held as u32);
    assert!(connection.host_finished());
    assert_eq!(connection.due(), Due::Nothing);
});
