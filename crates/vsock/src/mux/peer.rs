// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A program of the host, in the mux's table.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::connection::{Phase, Wait};
use crate::limits::Limits;
use crate::link::Link;
use crate::stream::Stream;
use crate::table::Token;

/// What is watched at a socket, always.
const READABLE: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// A program of the host, and what it is connected to.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) state: State,
    pub(super) since: Instant,
    /// The deadline that is set.
    pub(super) deadline: Option<Instant>,
    /// Whether the socket is watched for room.
    watches_room: bool,
}

#[derive(Debug)]
pub(super) enum State {
    /// It has connected, and not said to which port.
    Greeting(Stream),
    /// It has a connection to the guest, or is to get one.
    Linked(Link),
}

impl Peer {
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            since: Instant::now(),
            deadline: None,
            watches_room: false,
        }
    }

    /// Its connection, once it has one.
    pub(super) const fn link(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Greeting(_) => None,
            State::Linked(link) => Some(link),
        }
    }

    /// The deadline that its state calls for.
    pub(super) fn due_deadline(&self, limits: &Limits) -> Option<Instant> {
        let State::Linked(link) = &self.state else {
            return None;
        };
        let connection = link.connection();
        match (connection.waits_for(), self.deadline) {
            _ if link.is_over() => None,
            (None, at) if connection.phase() == Phase::Dialing => at,
            (None, _) => None,
            (Some(_), Some(at)) => Some(at),
            (Some(Wait::Answer), None) => Some(self.since + limits.connect_timeout),
            (Some(Wait::Reset), None) => Some(Instant::now() + limits.close_timeout),
        }
    }

    /// Watches the socket for room while bytes wait for it, and then no more.
    pub(super) fn watch_room(&mut self, epoll: &OwnedFd, token: Token) {
        let State::Linked(link) = &self.state else {
            return;
        };
        let Some(stream) = link.stream() else {
            return;
        };
        if link.has_backlog() == self.watches_room {
            return;
        }
        self.watches_room = link.has_backlog();
        let room = if self.watches_room {
            EventFlags::OUT
        } else {
            EventFlags::empty()
        };
        let data = EventData::new_u64(token.into());
        // It was added before, so this cannot fail.
        let _ = epoll::modify(epoll, stream, data, READABLE | room);
    }
}

/// Watches a socket for the first time.
pub(super) fn watch(epoll: &OwnedFd, stream: &Stream, token: Token) -> Result<(), Errno> {
    epoll::add(epoll, stream, EventData::new_u64(token.into()), READABLE)
}
