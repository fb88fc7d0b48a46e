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

mod guest;
mod host;
mod peer;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::connection::{Due, Phase};
use crate::endpoint::Endpoint;
use crate::limits::Limits;
use crate::packet::{Header, Ports};
use crate::table::{Table, Token};
use crate::timer::Timer;

pub use guest::Filled;
use peer::Peer;

/// Ports that stand for programs of the host begin here, far from those that are listened on.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What an event of the kernel is about, if not a connection: numbers that are no token's.
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

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

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Accept,
    Peer(Token),
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

    /// Drops all connections; the host's programs see their end.
    pub fn disconnect_all(&mut self) {
        self.peers.clear();
        self.names.clear();
        self.replies.clear();
        self.timer.clear();
        self.watch_listener(EventFlags::IN);
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
        let deadline = peer.due_deadline(&self.limits);
        if deadline != peer.deadline {
            if let Some(at) = peer.deadline {
                self.timer.unset(at, Alarm::Peer(token));
            }
            if let Some(at) = deadline {
                self.timer.set(at, Alarm::Peer(token));
            }
            peer.deadline = deadline;
        }
        peer.watch_room(&self.epoll, token);

        let Some(link) = peer.link() else {
            return;
        };
        let is_over = link.is_over();
        let connection = link.connection();
        let is_due = connection.due() != Due::Nothing;
        let ports = connection.ports();
        // The guest may use the ports again, even while the host still takes what came before.
        if connection.phase() == Phase::Over && self.names.get(&ports) == Some(&token) {
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
