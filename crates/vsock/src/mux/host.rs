// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens at the host's sockets, and what does not happen in time.

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::connection::{Connection, Phase};
use crate::greeting::{self, MAX_LINE};
use crate::link::Link;
use crate::packet::Ports;
use crate::stream::Stream;
use crate::table::Token;

use super::peer::{Peer, State, watch};
use super::{Alarm, FIRST_HOST_PORT, LISTENER, Mux, TIMER};

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

impl Mux {
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

    /// Tries to reach the program of the host that the guest asked for.
    pub(super) fn dial(&mut self, token: Token) {
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
}
