// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All connections of one guest, multiplexed between its queues and the host's sockets.
//!
//! It knows nothing of queues: packets of the guest are handed to [`Mux::receive`], room for
//! packets to the guest to [`Mux::fill`], and [`Mux::poll`] is called when its descriptor is
//! readable.
//!
//! Every socket is watched edge-triggered, by one epoll descriptor of the mux's own. So a socket
//! with data for which the guest has no room costs nothing while it waits; and one wake-up serves
//! all sockets before the guest is interrupted once.
//!
//! Connections take turns at the guest's buffers, a packet each. What one of them waits for, be it
//! credit of the guest or a host that does not read, holds up none of the others.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::buffer::{Buffer, Packet};
use crate::connection::{Connection, Due, Phase, Wait};
use crate::endpoint::Endpoint;
use crate::greeting::{self, MAX_LINE};
use crate::limits::Limits;
use crate::link::{Link, Next};
use crate::packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};
use crate::stream::Stream;
use crate::table::{Table, Token};
use crate::timer::Timer;

/// Packets that answer others and belong to no connection, at most. With so many waiting for the
/// guest to give buffers, no more of its packets are handled (section 5.10.6.1.1).
const MAX_REPLIES: usize = 256;

/// Ports that stand for programs of the host begin here, far from those that are listened on.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// How many times in a row, before the guest's queues have their turn. More will announce
/// themselves again.
const ROUNDS: usize = 16;

/// Connections of the host taken at a time. More will announce themselves again.
const ACCEPTS: usize = 64;

/// How long to wait before trying again what the host has no room for now.
const RETRY: Duration = Duration::from_millis(10);

/// How long to wait for events: none is fine.
const NOT_AT_ALL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What an event of the kernel is about, if not a connection: numbers that are no token's.
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What is watched at a socket, always.
const READABLE: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// What the guest's buffer was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Filled {
    /// It holds a packet of that many bytes.
    Packet(u32),
    /// Nothing: there is no packet, and the buffer may be used later.
    Nothing,
    /// Nothing: it is too small to be of use, and should be given back.
    TooSmall,
}

/// The multiplexer.
#[derive(Debug)]
pub struct Mux {
    guest_cid: u64,
    limits: Limits,
    endpoint: Arc<Endpoint>,
    epoll: OwnedFd,
    timer: Timer<Alarm>,
    peers: Table<Peer>,
    names: HashMap<Ports, Token>,
    replies: VecDeque<Header>,
    next_port: u32,
}

/// A program of the host, and what it is connected to.
#[derive(Debug)]
struct Peer {
    state: State,
    since: Instant,
    /// The deadline that is set.
    deadline: Option<Instant>,
    /// Whether the socket is watched for room.
    watches_room: bool,
}

#[derive(Debug)]
enum State {
    /// It has connected, and not said to which port.
    Greeting(Stream),
    /// It has a connection to the guest, or is to get one.
    Linked(Link),
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Accept,
    Peer(Token),
}

impl Peer {
    fn new(state: State) -> Self {
        Self {
            state,
            since: Instant::now(),
            deadline: None,
            watches_room: false,
        }
    }

    const fn link(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Greeting(_) => None,
            State::Linked(link) => Some(link),
        }
    }
}

impl Mux {
    /// A multiplexer without connections.
    ///
    /// # Errors
    ///
    /// The host's, if it has no descriptors left.
    pub fn new(guest_cid: u64, endpoint: Arc<Endpoint>, limits: Limits) -> Result<Self, Errno> {
        let limits = limits.sane();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = Timer::new()?;
        let timer_data = EventData::new_u64(TIMER);
        epoll::add(&epoll, &timer, timer_data, EventFlags::IN)?;
        let listener_data = EventData::new_u64(LISTENER);
        epoll::add(&epoll, &*endpoint, listener_data, EventFlags::IN)?;
        Ok(Self {
            guest_cid,
            limits,
            endpoint,
            epoll,
            timer,
            peers: Table::new(limits.connections),
            names: HashMap::new(),
            replies: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
        })
    }

    /// Whether packets of the guest can be handled now. If not, they can once the guest has given
    /// buffers.
    pub fn has_room(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&mut self) -> bool {
        !self.replies.is_empty() || self.peers.front().is_some()
    }

    /// Drops all connections; the host's programs see their end.
    pub fn disconnect_all(&mut self) {
        self.peers.clear();
        self.names.clear();
        self.replies.clear();
        self.timer.clear();
        self.watch_listener(EventFlags::IN);
    }

    /// Handles a packet of the guest.
    pub fn receive(&mut self, packet: Packet<'_>) {
        let Packet { header, mut data } = packet;
        if !self.is_addressed_well(&header) {
            return self.refuse(&header);
        }
        let ports = header.ports();
        let Some(&token) = self.names.get(&ports) else {
            return match Op::from_number(header.op) {
                Some(Op::Request) => self.connect_to_host(&header),
                _ => self.refuse(&header),
            };
        };
        if let Some(link) = self.peers.get_mut(token).and_then(Peer::link) {
            link.receive(&header, &mut data);
        }
        self.settle(token);
    }

    /// Handles a packet of the guest whose data is not all there: its connection cannot go on.
    pub fn receive_broken(&mut self, header: &Header) {
        let token = self.names.get(&header.ports()).copied();
        match token.filter(|_| self.is_addressed_well(header)) {
            Some(token) => self.reset(token),
            None => self.refuse(header),
        }
    }

    fn is_addressed_well(&self, header: &Header) -> bool {
        header.src_cid == self.guest_cid
            && header.dst_cid == HOST_CID
            && header.socket_type == TYPE_STREAM
    }

    /// Answers a packet that belongs to no connection; but a reset is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op == Op::Rst.number() {
            return;
        }
        self.replies.push_back(Header {
            src_cid: header.dst_cid,
            socket_type: header.socket_type,
            ..Header::to_guest(self.guest_cid, header.ports(), Op::Rst)
        });
    }

    /// The guest asks for a connection.
    fn connect_to_host(&mut self, request: &Header) {
        let connection = Connection::from_guest(self.guest_cid, request, self.limits.buffer);
        let link = Link::without_stream(connection);
        let Some(token) = self.peers.insert(Peer::new(State::Linked(link))) else {
            return self.refuse(request);
        };
        self.names.insert(request.ports(), token);
        self.dial(token);
    }

    /// Tries to reach the program of the host that the guest asked for.
    fn dial(&mut self, token: Token) {
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        let give_up = peer.since + self.limits.connect_timeout;
        let State::Linked(link) = &mut peer.state else {
            return;
        };
        match self.endpoint.dial(link.connection().ports().host) {
            Ok(stream) if watch(&self.epoll, &stream, token).is_ok() => link.attach(stream),
            // Its queue of connections is full, and nothing tells when it no longer is.
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < give_up => {
                let retry = Instant::now() + RETRY;
                peer.deadline = Some(retry);
                self.timer.set(retry, Alarm::Peer(token));
            }
            _ => link.reset(),
        }
        self.settle(token);
    }

    /// Breaks a connection off.
    fn reset(&mut self, token: Token) {
        if let Some(link) = self.peers.get_mut(token).and_then(Peer::link) {
            link.reset();
        }
        self.settle(token);
    }

    /// Fills a buffer with the next packet for the guest.
    pub fn fill(&mut self, mut buffer: Buffer<'_>) -> Filled {
        if let Some(header) = self.replies.pop_front() {
            return Filled::Packet(buffer.finish(&header));
        }
        while let Some(token) = self.peers.front() {
            let Some(link) = self.peers.get_mut(token).and_then(Peer::link) else {
                self.peers.end_turn(false);
                continue;
            };
            let next = link.next(&mut buffer);
            if next == Next::TooSmall {
                return Filled::TooSmall;
            }
            self.peers.end_turn(false);
            self.settle(token);
            if let Next::Packet(header) = next {
                return Filled::Packet(buffer.finish(&header));
            }
        }
        Filled::Nothing
    }

    /// Handles what happened at the host's sockets, and deadlines that have passed.
    pub fn poll(&mut self) {
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        for _ in 0..ROUNDS {
            // It fails only if a signal came first; what there is announces itself again then.
            let Ok(count) = epoll::wait(&self.epoll, &mut events[..], Some(&NOT_AT_ALL)) else {
                return;
            };
            for event in &events[..count] {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    TIMER => self.handle_deadlines(),
                    token => self.peer_ready(token.into(), event.flags),
                }
            }
            if count < EVENTS {
                return;
            }
        }
    }

    /// Something happened at a socket.
    fn peer_ready(&mut self, token: Token, events: EventFlags) {
        // Nobody, if its socket was closed after the event.
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        match &mut peer.state {
            State::Greeting(_) => self.read_greeting(token),
            State::Linked(link) => {
                link.stream_ready(events);
                self.settle(token);
            }
        }
    }

    /// Takes connections that programs of the host have made.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            match self.endpoint.accept() {
                Ok(stream) => self.greet(stream),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Out of descriptors or memory: the connection waits where it is.
                Err(_) => {
                    self.watch_listener(EventFlags::empty());
                    self.timer.set(Instant::now() + RETRY, Alarm::Accept);
                    return;
                }
            }
        }
    }

    fn greet(&mut self, stream: Stream) {
        let peer = Peer::new(State::Greeting(stream));
        // Without a place for it, its end is its answer.
        let Some(token) = self.peers.insert(peer) else {
            return;
        };
        if let Some(Peer {
            state: State::Greeting(stream),
            ..
        }) = self.peers.get_mut(token)
            && watch(&self.epoll, stream, token).is_err()
        {
            self.peers.remove(token);
        }
    }

    /// Looks whether the program has said to which port it wants to be connected.
    fn read_greeting(&mut self, token: Token) {
        let Some(Peer {
            state: State::Greeting(stream),
            ..
        }) = self.peers.get_mut(token)
        else {
            return;
        };
        let mut line = [0; MAX_LINE];
        let request = match stream.peek(&mut line) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(0) | Err(_) => None,
            Ok(len) => match greeting::parse(&line[..len]) {
                Ok(None) => return,
                Ok(Some(request)) => stream.take(&mut line[..request.len]).ok().map(|_| request),
                Err(_) => None,
            },
        };
        // Whoever said something else sees its connection end.
        match request {
            Some(request) => self.connect_to_guest(token, request.port),
            None => drop(self.peers.remove(token)),
        }
    }

    /// A program of the host asks for a connection.
    fn connect_to_guest(&mut self, token: Token, guest_port: u32) {
        let ports = self.unused_ports(guest_port);
        let connection = Connection::from_host(self.guest_cid, ports, self.limits.buffer);
        self.names.insert(ports, token);
        self.peers.replace(token, |peer| match peer.state {
            State::Greeting(stream) => {
                Peer::new(State::Linked(Link::with_stream(connection, stream)))
            }
            State::Linked(_) => peer,
        });
        self.settle(token);
    }

    /// A port of the host that makes a new connection with a port of the guest.
    fn unused_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let ports = Ports { host, guest };
            // There are far more ports than connections.
            if !self.names.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// The timer has gone off.
    fn handle_deadlines(&mut self) {
        self.timer.acknowledge();
        let now = Instant::now();
        while let Some(alarm) = self.timer.expired(now) {
            match alarm {
                Alarm::Accept => self.watch_listener(EventFlags::IN),
                Alarm::Peer(token) => self.peer_expired(token),
            }
        }
        self.timer.arm();
    }

    fn peer_expired(&mut self, token: Token) {
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        peer.deadline = None;
        let Some(link) = peer.link() else {
            return;
        };
        if link.connection().phase() == Phase::Dialing {
            return self.dial(token);
        }
        link.expire();
        self.settle(token);
    }

    fn watch_listener(&self, events: EventFlags) {
        // It was added before, so this cannot fail.
        let _ = epoll::modify(
            &self.epoll,
            &*self.endpoint,
            EventData::new_u64(LISTENER),
            events,
        );
    }

    /// Does what has become due after something happened to a connection: its turn at the guest's
    /// buffers, what is watched at its socket, its deadline, and its end.
    fn settle(&mut self, token: Token) {
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        let State::Linked(link) = &mut peer.state else {
            return;
        };
        let connection = link.connection();
        let ports = connection.ports();
        let phase = connection.phase();
        let is_due = connection.due() != Due::Nothing;
        let is_over = link.is_over();

        let deadline = match (connection.waits_for(), peer.deadline) {
            _ if is_over => None,
            (None, at) if phase == Phase::Dialing => at,
            (None, _) => None,
            (Some(_), Some(at)) => Some(at),
            (Some(Wait::Answer), None) => Some(peer.since + self.limits.connect_timeout),
            (Some(Wait::Reset), None) => Some(Instant::now() + self.limits.close_timeout),
        };
        if deadline != peer.deadline {
            if let Some(at) = peer.deadline {
                self.timer.unset(at, Alarm::Peer(token));
            }
            if let Some(at) = deadline {
                self.timer.set(at, Alarm::Peer(token));
            }
            peer.deadline = deadline;
        }

        if let Some(stream) = link.stream()
            && link.has_backlog() != peer.watches_room
        {
            peer.watches_room = link.has_backlog();
            let room = if peer.watches_room {
                EventFlags::OUT
            } else {
                EventFlags::empty()
            };
            let data = EventData::new_u64(token.into());
            // It was added before, so this cannot fail.
            let _ = epoll::modify(&self.epoll, stream, data, READABLE | room);
        }

        // The guest may use the ports again, even while the host still takes what came before.
        if phase == Phase::Over && self.names.get(&ports) == Some(&token) {
            self.names.remove(&ports);
        }
        if is_over {
            self.peers.remove(token);
        } else if is_due {
            self.peers.enqueue(token);
        }
    }
}

impl AsRawFd for Mux {
    /// Readable when [`poll`](Mux::poll) has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn watch(epoll: &OwnedFd, stream: &Stream, token: Token) -> Result<(), Errno> {
    epoll::add(epoll, stream, EventData::new_u64(token.into()), READABLE)
}
