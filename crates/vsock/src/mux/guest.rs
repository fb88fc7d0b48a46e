// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's packets, in and out.

use crate::buffer::{Buffer, Packet};
use crate::connection::Connection;
use crate::link::{Link, Next};
use crate::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::table::Token;

use super::Mux;
use super::peer::{Peer, State};

/// Packets that answer others and belong to no connection, at most. With so many waiting for the
/// guest to give buffers, no more of its packets are handled (section 5.10.6.1.1).
const MAX_REPLIES: usize = 256;

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

impl Mux {
    /// Whether packets of the guest can be handled now. If not, they can once the guest has given
    /// buffers.
    pub fn has_room(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&mut self) -> bool {
        !self.replies.is_empty() || self.peers.front().is_some()
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
                self.peers.end_turn();
                continue;
            };
            let next = link.next(&mut buffer);
            if next == Next::TooSmall {
                return Filled::TooSmall;
            }
            self.peers.end_turn();
            self.settle(token);
            if let Next::Packet(header) = next {
                return Filled::Packet(buffer.finish(&header));
            }
        }
        Filled::Nothing
    }
}
