// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whoever acts next, what one side writes is what the other reads.

use std::collections::VecDeque;

use coracle_vsock::connection::{Connection, Due, Received, Wait};
use coracle_vsock::packet::{Header, Op, SHUTDOWN_SEND};
use proptest::prelude::*;

use crate::from_guest;

/// Both ends of a connection, and all that lies between them.
struct World {
    connection: Connection,
    /// What the guest was sent and has not handled, and the other way round.
    to_guest: VecDeque<(Header, Vec<u8>)>,
    from_guest: VecDeque<(Header, Vec<u8>)>,
    guest: Side,
    guest_buffer: VecDeque<u8>,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    guest_sent: u32,
    guest_knows: Header,
    host: Side,
    backlog: VecDeque<u8>,
    /// The host's socket, each way.
    pipe_in: VecDeque<u8>,
    pipe_out: VecDeque<u8>,
    pipe_size: usize,
    /// What we hold for the host at most.
    our_buffer: usize,
    host_end_found: bool,
    end_passed: bool,
}

/// An application: what it has to write, what it has read.
#[derive(Default)]
struct Side {
    writes: VecDeque<u8>,
    ended: bool,
    read: Vec<u8>,
    saw_end: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    GuestWrites(usize),
    GuestReads(usize),
    GuestHandles,
    WeHandle,
    WeSend(u32),
    WeFlush(usize),
    HostWrites(usize),
    HostReads(usize),
}

fn take(queue: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let len = len.min(queue.len());
    queue.drain(..len).collect()
}

impl World {
    fn new(up: &[u8], down: &[u8], our_buffer: u32, guest_buffer: u32, pipe_size: usize) -> Self {
        let request = Header {
            buf_alloc: guest_buffer,
            ..from_guest(Op::Request)
        };
        let mut connection = Connection::from_guest(3, &request, our_buffer);
        connection.accept();
        let response = connection.control(Op::Response);
        Self {
            connection,
            to_guest: VecDeque::new(),
            from_guest: VecDeque::new(),
            guest: Side {
                writes: up.iter().copied().collect(),
                ..Side::default()
            },
            guest_buffer: VecDeque::new(),
            guest_buf_alloc: guest_buffer,
            guest_fwd_cnt: 0,
            guest_sent: 0,
            guest_knows: response,
            host: Side {
                writes: down.iter().copied().collect(),
                ..Side::default()
            },
            backlog: VecDeque::new(),
            pipe_in: VecDeque::new(),
            pipe_out: VecDeque::new(),
            pipe_size,
            our_buffer: our_buffer as usize,
            host_end_found: false,
            end_passed: false,
        }
    }

    fn guest_packet(&self, op: Op) -> Header {
        Header {
            buf_alloc: self.guest_buf_alloc,
            fwd_cnt: self.guest_fwd_cnt,
            ..from_guest(op)
        }
    }

    /// Returns whether anything happened.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::GuestWrites(len) => self.guest_writes(len),
            Step::GuestReads(len) => self.guest_reads(len),
            Step::GuestHandles => self.guest_handles(),
            Step::WeHandle => self.we_handle(),
            Step::WeSend(len) => self.we_send(len),
            Step::WeFlush(len) => self.we_flush(len),
            Step::HostWrites(len) => self.host_writes(len),
            Step::HostReads(len) => self.host_reads(len),
        }
    }

    fn guest_writes(&mut self, len: usize) -> bool {
        if self.guest.ended {
            return false;
        }
        if self.guest.writes.is_empty() {
            self.guest.ended = true;
            let end = Header {
                flags: SHUTDOWN_SEND,
                ..self.guest_packet(Op::Shutdown)
            };
            self.from_guest.push_back((end, Vec::new()));
            return true;
        }
        let used = self.guest_sent.wrapping_sub(self.guest_knows.fwd_cnt);
        let window = self.guest_knows.buf_alloc - used;
        let bytes = take(&mut self.guest.writes, len.min(window as usize));
        if bytes.is_empty() {
            return false;
        }
        let len = u32::try_from(bytes.len()).unwrap();
        self.guest_sent = self.guest_sent.wrapping_add(len);
        let packet = Header {
            len,
            ..self.guest_packet(Op::Rw)
        };
        self.from_guest.push_back((packet, bytes));
        true
    }

    fn guest_reads(&mut self, len: usize) -> bool {
        let bytes = take(&mut self.guest_buffer, len);
        if bytes.is_empty() {
            return false;
        }
        let len = u32::try_from(bytes.len()).unwrap();
        self.guest_fwd_cnt = self.guest_fwd_cnt.wrapping_add(len);
        self.guest.read.extend(bytes);
        let update = self.guest_packet(Op::CreditUpdate);
        self.from_guest.push_back((update, Vec::new()));
        true
    }

    fn guest_handles(&mut self) -> bool {
        let Some((header, bytes)) = self.to_guest.pop_front() else {
            return false;
        };
        self.guest_knows = header;
        self.guest_buffer.extend(bytes);
        assert!(self.guest_buffer.len() <= self.guest_buf_alloc as usize);
        match Op::from_number(header.op).unwrap() {
            Op::CreditRequest => {
                let update = self.guest_packet(Op::CreditUpdate);
                self.from_guest.push_back((update, Vec::new()));
            }
            Op::Shutdown => self.guest.saw_end |= header.flags & SHUTDOWN_SEND != 0,
            Op::Rw | Op::CreditUpdate => assert!(!self.guest.saw_end || header.len == 0),
            op => panic!("the guest did not expect {op:?}"),
        }
        true
    }

    fn we_handle(&mut self) -> bool {
        let Some((header, bytes)) = self.from_guest.pop_front() else {
            return false;
        };
        let received = self.connection.receive(&header);
        assert_ne!(received, Received::Broken);
        assert_eq!(received == Received::Data, header.op == Op::Rw.number());
        self.backlog.extend(bytes);
        assert!(self.backlog.len() <= self.our_buffer);
        true
    }

    fn we_send(&mut self, max: u32) -> bool {
        if !self.pipe_in.is_empty() || (self.host.ended && !self.host_end_found) {
            self.connection.host_readable();
        }
        match self.connection.due() {
            Due::Nothing => false,
            Due::Control(op) => {
                let header = self.connection.control(op);
                self.to_guest.push_back((header, Vec::new()));
                true
            }
            Due::Data(window) => {
                let bytes = take(&mut self.pipe_in, window.min(max) as usize);
                if bytes.is_empty() {
                    if self.host.ended {
                        self.connection.host_ended();
                        self.host_end_found = true;
                    } else {
                        self.connection.host_blocked();
                    }
                    return self.host.ended;
                }
                let header = self.connection.data(u32::try_from(bytes.len()).unwrap());
                self.to_guest.push_back((header, bytes));
                true
            }
        }
    }

    fn we_flush(&mut self, len: usize) -> bool {
        let room = self.pipe_size - self.pipe_out.len();
        let bytes = take(&mut self.backlog, len.min(room));
        self.connection
            .forwarded(u32::try_from(bytes.len()).unwrap());
        let was_passed = self.end_passed;
        self.end_passed = !self.connection.guest_sends() && self.connection.drained();
        let moved = !bytes.is_empty();
        self.pipe_out.extend(bytes);
        moved || self.end_passed != was_passed
    }

    fn host_writes(&mut self, len: usize) -> bool {
        let was_ended = self.host.ended;
        self.host.ended = self.host.writes.is_empty();
        let room = self.pipe_size - self.pipe_in.len();
        let bytes = take(&mut self.host.writes, len.min(room));
        let moved = !bytes.is_empty();
        self.pipe_in.extend(bytes);
        moved || self.host.ended != was_ended
    }

    fn host_reads(&mut self, len: usize) -> bool {
        let bytes = take(&mut self.pipe_out, len);
        self.host.read.extend(&bytes);
        let saw_end = self.end_passed && self.pipe_out.is_empty();
        let changed = saw_end != self.host.saw_end;
        self.host.saw_end = saw_end;
        changed || !bytes.is_empty()
    }

    /// Everybody does what they can until nobody can do any more.
    fn settle(&mut self) {
        let all = [
            Step::GuestWrites(7),
            Step::GuestReads(5),
            Step::GuestHandles,
            Step::WeHandle,
            Step::WeSend(9),
            Step::WeFlush(11),
            Step::HostWrites(13),
            Step::HostReads(3),
        ];
        while all
            .into_iter()
            .fold(false, |any, step| self.step(step) | any)
        {}
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_usize..64).prop_map(Step::GuestWrites),
        (1_usize..64).prop_map(Step::GuestReads),
        Just(Step::GuestHandles),
        Just(Step::WeHandle),
        (1_u32..64).prop_map(Step::WeSend),
        (1_usize..64).prop_map(Step::WeFlush),
        (1_usize..64).prop_map(Step::HostWrites),
        (1_usize..64).prop_map(Step::HostReads),
    ]
}

proptest! {
    #[test]
    fn bytes_in_are_bytes_out_under_any_schedule(
        up in proptest::collection::vec(any::<u8>(), 0..400),
        down in proptest::collection::vec(any::<u8>(), 0..400),
        our_buffer in 1_u32..64,
        guest_buffer in 1_u32..64,
        pipe_size in 1_usize..64,
        schedule in proptest::collection::vec(any_step(), 0..400),
    ) {
        let mut world = World::new(&up, &down, our_buffer, guest_buffer, pipe_size);

        for step in schedule {
            world.step(step);
        }
        world.settle();

        prop_assert_eq!(world.host.read, up);
        prop_assert_eq!(world.guest.read, down);
        prop_assert!(world.host.saw_end);
        prop_assert!(world.guest.saw_end);
        prop_assert_eq!(world.connection.waits_for(), Some(Wait::Reset));
    }
}
