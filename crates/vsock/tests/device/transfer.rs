// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Much data through small windows, both ways at once.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Header, Op, Ports, SHUTDOWN_SEND};
use rstest::rstest;

use crate::guest::{DEADLINE, Guest, PORTS, packet, pattern};

/// An application of the guest with its socket, which keeps to the credit in both directions.
struct Socket {
    ports: Ports,
    /// Size of its receive buffer.
    room: u32,
    received: Vec<u8>,
    has_ended: bool,
    sent: usize,
    end_sent: bool,
    /// The device's credit, as it told last.
    known: Header,
    /// Received bytes, as the device was told last.
    told: u32,
}

impl Socket {
    fn window(&self) -> usize {
        let in_flight = self.sent - self.known.fwd_cnt as usize;
        self.known.buf_alloc as usize - in_flight
    }

    fn header(&mut self, op: Op) -> Header {
        self.told = u32::try_from(self.received.len()).unwrap();
        Header {
            buf_alloc: self.room,
            fwd_cnt: self.told,
            ..packet(self.ports, op)
        }
    }

    /// Sends what the credit allows of `data`, then the end. Returns whether anything was sent.
    fn write(&mut self, guest: &mut Guest, bytes: &[u8]) -> bool {
        let len = self.window().min(bytes.len() - self.sent);
        if len > 0 {
            let part = &bytes[self.sent..self.sent + len];
            let header = Header {
                len: u32::try_from(len).unwrap(),
                ..self.header(Op::Rw)
            };
            guest.send(&header, part);
            self.sent += len;
            return true;
        }
        if self.sent == bytes.len() && !self.end_sent {
            self.end_sent = true;
            let header = Header {
                flags: SHUTDOWN_SEND,
                ..self.header(Op::Shutdown)
            };
            guest.send(&header, &[]);
            return true;
        }
        false
    }

    /// Takes what has come, and gives credit for it. Returns whether anything came.
    fn read(&mut self, guest: &mut Guest) -> bool {
        let mut has_come = false;
        while let Some((header, bytes)) = guest.try_receive() {
            has_come = true;
            assert!(!self.has_ended || bytes.is_empty());
            self.known = header;
            self.received.extend(bytes);
            let in_flight = self.received.len() - self.told as usize;
            assert!(in_flight <= self.room as usize, "the window was overrun");
            self.has_ended |= header.flags & SHUTDOWN_SEND != 0 && header.len == 0;
            if header.op == Op::CreditRequest.number() {
                let update = self.header(Op::CreditUpdate);
                guest.send(&update, &[]);
            }
        }
        if has_come && self.told as usize != self.received.len() {
            let update = self.header(Op::CreditUpdate);
            guest.send(&update, &[]);
        }
        has_come
    }
}

/// A program of the host with its socket.
struct Program {
    stream: UnixStream,
    sent: usize,
    received: Vec<u8>,
    has_ended: bool,
}

impl Program {
    fn write(&mut self, bytes: &[u8]) -> bool {
        let mut has_moved = false;
        while self.sent < bytes.len() {
            match self.stream.write(&bytes[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return has_moved,
                Err(error) => panic!("{error}"),
            }
            has_moved = true;
            if self.sent == bytes.len() {
                self.stream.shutdown(Shutdown::Write).unwrap();
            }
        }
        has_moved
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 5000];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.has_ended = true,
            Ok(len) => self.received.extend(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
        !self.has_ended
    }
}

#[rstest]
#[case::tiny_windows(1000, 1000, 600, 16 << 20)]
#[case::windows_of_a_few_bytes(3, 5, 64, 20_000)]
#[case::windows_of_a_byte(1, 1, 45, 3_000)]
#[case::wide_windows(128 * 1024, 256 * 1024, 4096, 16 << 20)]
#[case::windows_that_differ(700, 64 * 1024, 4096, 4 << 20)]
fn everything_arrives_in_both_directions(
    #[case] our_buffer: u32,
    #[case] guest_buffer: u32,
    #[case] rx_buffer: u32,
    #[case] len: usize,
) {
    let limits = Limits {
        buffer: our_buffer,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(limits);
    let (up, down) = (pattern(len, 5), pattern(len, 6));
    let request = Header {
        buf_alloc: guest_buffer,
        ..packet(PORTS, Op::Request)
    };
    guest.send(&request, &[]);
    let known = guest.expect(Op::Response);
    let mut socket = Socket {
        ports: PORTS,
        room: guest_buffer,
        received: Vec::new(),
        has_ended: false,
        sent: 0,
        end_sent: false,
        known,
        told: 0,
    };
    let mut program = Program {
        stream: guest.accept().unwrap(),
        sent: 0,
        received: Vec::new(),
        has_ended: false,
    };

    let mut last_progress = Instant::now();
    while !(socket.has_ended && program.has_ended) {
        let mut has_moved = program.write(&down);
        guest.run();
        guest.top_up_buffers(8, rx_buffer);
        has_moved |= socket.read(&mut guest);
        has_moved |= socket.write(&mut guest, &up);
        has_moved |= program.read();
        if has_moved {
            last_progress = Instant::now();
        }
        assert!(last_progress.elapsed() < DEADLINE, "the transfer is stuck");
    }

    assert!(program.received == up);
    assert!(socket.received == down);
}
