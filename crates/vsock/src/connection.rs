// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One stream connection between a port of the guest and a port of the host, as a state machine.
//!
//! Pure: what happens on either side comes in as a call, what to do about it goes out as a value.
//! No descriptor, no memory, no clock and no data is seen here, only counts of bytes; so a test or
//! a fuzzer can put it through any schedule.
//!
//! ```text
//!  host asks:   Asked ──REQUEST──▶ Waiting ──RESPONSE came──▶ Open
//!  guest asks:  Dialing ──host accepts──▶ Accepted ──RESPONSE──▶ Open
//!  any of them: ──broken, refused, expired──▶ Resetting ──RST──▶ Over
//!               ──RST came──▶ Over
//! ```
//!
//! Each direction ends by itself (half-close). A side that will send no more has its bytes
//! delivered before the end is told to the other, so an end never overtakes data:
//!
//! - the host's end of file becomes `SHUTDOWN(SEND)` once all that it wrote has gone to the guest;
//! - the guest's `SHUTDOWN(SEND)` is passed on to the host once [`drained`](Connection::drained);
//! - a guest that ended both directions is answered with `RST` once drained (section 5.10.6.5),
//!   which frees the pair of ports for use again.

use crate::credit::{Inbound, Outbound};
use crate::packet::{Header, Op, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Both directions are at their end.
const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The host asked for it; the guest has not been sent the request.
    Asked,
    /// The guest has been asked and has not answered.
    Waiting,
    /// The guest asked for it; the host's side is not there yet.
    Dialing,
    /// The host's side is there; the guest has not been told.
    Accepted,
    /// Data may flow.
    Open,
    /// It is broken, refused or done; the guest has not been told.
    Resetting,
    /// Nothing more will happen, and the guest knows.
    Over,
}

/// What a packet of the guest means for the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Nothing.
    Nothing,
    /// The guest accepted the host's request.
    Accepted,
    /// The packet's data goes to the host. Each byte must be accounted for later by
    /// [`Connection::forwarded`].
    Data,
    /// The guest ended one direction or both: see [`Connection::guest_sends`] and
    /// [`Connection::guest_receives`].
    Shutdown,
    /// The guest broke the protocol, and a reset is due.
    Broken,
    /// The guest reset the connection: it is over. What was received before still belongs to the
    /// host.
    Reset,
}

/// What is to be sent to the guest next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing for now.
    Nothing,
    /// A packet without data.
    Control(Op),
    /// Data of the host, at most so many bytes; to be reported by [`Connection::data`], or by
    /// [`Connection::host_blocked`] or [`Connection::host_ended`] if there is none.
    Data(u32),
}

/// What a connection waits for that may never come. The clock is the caller's: once it has run out,
/// [`Connection::expire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The guest has been asked for a connection.
    Answer,
    /// Both directions are at their end, and the guest should reset the connection.
    Reset,
}

/// The state of a connection.
#[derive(Debug, Clone)]
pub struct Connection {
    guest_cid: u64,
    ports: Ports,
    phase: Phase,
    inbound: Inbound,
    outbound: Outbound,
    guest: Ends,
    host: Ends,
    /// The ends of the host's side that the guest has been told of, as flags of `SHUTDOWN`.
    told: u32,
    /// The host may have data to read.
    readable: bool,
    /// The guest asked for our credit.
    credit_wanted: bool,
    /// The guest was asked for its credit and has given none since.
    credit_asked: bool,
}

/// What a side still does.
#[derive(Debug, Clone, Copy)]
struct Ends {
    sends: bool,
    receives: bool,
}

impl Ends {
    const OPEN: Self = Self {
        sends: true,
        receives: true,
    };

    const fn closed(self) -> bool {
        !self.sends && !self.receives
    }
}

impl Connection {
    /// A connection that the guest asked for by `request`. The host is to be dialled, then
    /// [`accept`](Self::accept) or [`reset`](Self::reset) called.
    ///
    /// `capacity` is the number of bytes of the guest's that we will hold for the host.
    pub fn from_guest(guest_cid: u64, request: &Header, capacity: u32) -> Self {
        let mut connection = Self::new(guest_cid, request.ports(), Phase::Dialing, capacity);
        connection
            .outbound
            .update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// A connection that the host asks for; a `REQUEST` is due.
    ///
    /// `capacity` is the number of bytes of the guest's that we will hold for the host.
    pub fn from_host(guest_cid: u64, ports: Ports, capacity: u32) -> Self {
        Self::new(guest_cid, ports, Phase::Asked, capacity)
    }

    fn new(guest_cid: u64, ports: Ports, phase: Phase, capacity: u32) -> Self {
        Self {
            guest_cid,
            ports,
            phase,
            inbound: Inbound::new(capacity),
            outbound: Outbound::default(),
            guest: Ends::OPEN,
            host: Ends::OPEN,
            told: 0,
            readable: false,
            credit_wanted: false,
            credit_asked: false,
        }
    }

    /// The ports that name this connection.
    pub const fn ports(&self) -> Ports {
        self.ports
    }

    /// How far it has come.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the guest may still send data.
    pub const fn guest_sends(&self) -> bool {
        self.guest.sends
    }

    /// Whether the guest still takes data.
    pub const fn guest_receives(&self) -> bool {
        self.guest.receives
    }

    /// Whether every byte of the guest's has been passed on (or thrown away, if nobody reads).
    pub const fn drained(&self) -> bool {
        self.inbound.buffered() == 0
    }

    /// Whether nothing can pass between us and the host any more, so that its socket may be closed.
    pub const fn host_finished(&self) -> bool {
        match self.phase {
            Phase::Resetting | Phase::Over => self.drained(),
            _ => !self.host.sends && !self.host_still_receives(),
        }
    }

    /// A packet came from the guest.
    ///
    /// Its addresses and type have been checked by the caller; its data, `header.len` bytes, is all
    /// there.
    pub fn receive(&mut self, header: &Header) -> Received {
        self.outbound.update(header.buf_alloc, header.fwd_cnt);
        if self.outbound.window() > 0 {
            self.credit_asked = false;
        }
        match (self.phase, Op::from_number(header.op)) {
            (_, Some(Op::Rst)) => {
                self.phase = Phase::Over;
                Received::Reset
            }
            (Phase::Resetting | Phase::Over, _) => Received::Nothing,
            (Phase::Waiting, Some(Op::Response)) => {
                self.phase = Phase::Open;
                Received::Accepted
            }
            (Phase::Open, Some(Op::Rw)) => self.receive_data(header.len),
            (Phase::Open, Some(Op::Shutdown)) => self.receive_shutdown(header.flags),
            (Phase::Open, Some(Op::CreditUpdate)) => Received::Nothing,
            (Phase::Open, Some(Op::CreditRequest)) => {
                self.credit_wanted = true;
                Received::Nothing
            }
            _ => self.broken(),
        }
    }

    fn receive_data(&mut self, len: u32) -> Received {
        if !self.guest.sends || self.inbound.receive(len).is_err() {
            return self.broken();
        }
        if !self.host.receives {
            // It was sent before the guest heard that nobody reads.
            self.inbound.forward(len);
            return Received::Nothing;
        }
        Received::Data
    }

    fn receive_shutdown(&mut self, flags: u32) -> Received {
        self.guest.sends &= flags & SHUTDOWN_SEND == 0;
        self.guest.receives &= flags & SHUTDOWN_RECEIVE == 0;
        Received::Shutdown
    }

    fn broken(&mut self) -> Received {
        self.phase = Phase::Resetting;
        Received::Broken
    }

    /// The host's side of a connection that the guest asked for is there.
    pub fn accept(&mut self) {
        if self.phase == Phase::Dialing {
            self.phase = Phase::Accepted;
        }
    }

    /// The connection cannot go on, or not begin: a `RST` is due.
    pub fn reset(&mut self) {
        if self.phase != Phase::Over {
            self.phase = Phase::Resetting;
        }
    }

    /// What the connection waited for has not come.
    pub fn expire(&mut self) {
        if self.waits_for().is_some() {
            self.reset();
        }
    }

    /// What the connection waits for that needs a deadline.
    pub const fn waits_for(&self) -> Option<Wait> {
        match self.phase {
            Phase::Asked | Phase::Waiting => Some(Wait::Answer),
            Phase::Open if self.told == SHUTDOWN_BOTH => Some(Wait::Reset),
            _ => None,
        }
    }

    /// Bytes of the guest's were written to the host, or thrown away.
    pub fn forwarded(&mut self, len: u32) {
        self.inbound.forward(len);
    }

    /// The host may have data to read, or its end.
    pub const fn host_readable(&mut self) {
        self.readable = true;
    }

    /// The host has no more data for now.
    pub const fn host_blocked(&mut self) {
        self.readable = false;
    }

    /// The host will write no more, and all that it wrote has been taken.
    pub const fn host_ended(&mut self) {
        self.host.sends = false;
        self.readable = false;
    }

    /// The host will read no more. Bytes of the guest's that are still here have nowhere to go.
    pub fn host_closed(&mut self) {
        self.host.receives = false;
        self.inbound.forward(self.inbound.buffered());
    }

    /// What is to be sent to the guest next.
    pub fn due(&self) -> Due {
        match self.phase {
            Phase::Asked => Due::Control(Op::Request),
            Phase::Accepted => Due::Control(Op::Response),
            Phase::Resetting => Due::Control(Op::Rst),
            Phase::Waiting | Phase::Dialing | Phase::Over => Due::Nothing,
            Phase::Open => self.due_when_open(),
        }
    }

    fn due_when_open(&self) -> Due {
        if self.guest.closed() && self.drained() {
            return Due::Control(Op::Rst);
        }
        let has_data = self.readable && self.host.sends && self.guest.receives;
        let window = self.outbound.window();
        if has_data && window > 0 {
            return Due::Data(window);
        }
        // After data: the end of what the host writes is found by reading, and is told together
        // with the end of what it reads if both came at once.
        if self.shutdown_flags() != self.told {
            return Due::Control(Op::Shutdown);
        }
        if has_data && !self.credit_asked {
            return Due::Control(Op::CreditRequest);
        }
        if self.credit_wanted || (self.guest.sends && self.inbound.update_due()) {
            return Due::Control(Op::CreditUpdate);
        }
        Due::Nothing
    }

    /// Makes the packet without data that is [`due`](Self::due), and takes it as sent.
    pub fn control(&mut self, op: Op) -> Header {
        let mut header = self.header(op);
        match op {
            Op::Request => self.phase = Phase::Waiting,
            Op::Response => self.phase = Phase::Open,
            Op::Rst => self.phase = Phase::Over,
            Op::Shutdown => {
                self.told = self.shutdown_flags();
                header.flags = self.told;
            }
            Op::CreditRequest => self.credit_asked = true,
            Op::Rw | Op::CreditUpdate => {}
        }
        header
    }

    /// Makes the header of a packet with `len` bytes of the host's data, and takes it as sent.
    ///
    /// `len` is not more than [`Due::Data`] allowed.
    pub fn data(&mut self, len: u32) -> Header {
        self.outbound.send(len);
        Header {
            len,
            ..self.header(Op::Rw)
        }
    }

    /// The part that all packets share; each tells the guest of its credit.
    fn header(&mut self, op: Op) -> Header {
        self.credit_wanted = false;
        Header {
            buf_alloc: self.inbound.capacity(),
            fwd_cnt: self.inbound.announce(),
            ..Header::to_guest(self.guest_cid, self.ports, op)
        }
    }

    /// The ends of the host's side, as flags of `SHUTDOWN`.
    const fn shutdown_flags(&self) -> u32 {
        let mut flags = 0;
        if !self.host.sends {
            flags |= SHUTDOWN_SEND;
        }
        // To a guest that sends no more it matters only once the other direction has ended too:
        // then the connection is done, whoever still holds a descriptor.
        let has_ended = if self.guest.sends {
            !self.host.receives
        } else {
            !self.host.sends && !self.host_still_receives()
        };
        if has_ended {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags
    }

    /// Whether there is, or may come, something that the host will read.
    const fn host_still_receives(&self) -> bool {
        self.host.receives && (self.guest.sends || !self.drained())
    }
}
