// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection of the guest and the host's socket that it is linked to: moves the data, and passes
//! on the end of each direction once the data before it is through.

use coracle_virtio::Reader;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::backlog::Backlog;
use crate::buffer::Buffer;
use crate::connection::{Connection, Due, Phase, Received};
use crate::greeting;
use crate::packet::Header;
use crate::stream::Stream;

/// Both ends of one connection.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    /// The host's end, while there is, or may come, anything to move.
    stream: Option<Stream>,
    backlog: Backlog,
    /// The host was told that the guest sends no more.
    writing_ended: bool,
    /// The host was told that the guest receives no more.
    reading_ended: bool,
}

/// What a buffer of the guest's is to be filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// A packet with this header; its data is in the buffer already.
    Packet(Header),
    /// Nothing for now: the buffer is as it was.
    Nothing,
    /// Data, for which it has no room.
    TooSmall,
}

impl Link {
    /// Links a connection that the host asked for.
    pub fn with_stream(connection: Connection, stream: Stream) -> Self {
        let mut link = Self::without_stream(connection);
        link.stream = Some(stream);
        link
    }

    /// A connection that the guest asked for; [`attach`](Self::attach) follows.
    pub fn without_stream(connection: Connection) -> Self {
        Self {
            connection,
            stream: None,
            backlog: Backlog::default(),
            writing_ended: false,
            reading_ended: false,
        }
    }

    /// The host has accepted.
    pub fn attach(&mut self, stream: Stream) {
        self.stream = Some(stream);
        self.connection.accept();
    }

    /// The state of the guest's end.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The host's end, unless it is closed.
    pub const fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Whether bytes of the guest's wait until the host's socket takes more.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether nothing is left to do on either side.
    pub const fn is_over(&self) -> bool {
        matches!(self.connection.phase(), Phase::Over) && self.stream.is_none()
    }

    /// Breaks the connection off; what the guest sent before still goes to the host.
    pub fn reset(&mut self) {
        self.connection.reset();
        self.pass_on_ends();
    }

    /// What the connection waited for has not come.
    pub fn expire(&mut self) {
        self.connection.expire();
        self.pass_on_ends();
    }

    /// A packet came from the guest; `data` is at the packet's first byte of data, and has all of
    /// it.
    pub fn receive(&mut self, header: &Header, data: &mut Reader<'_>) {
        match self.connection.receive(header) {
            Received::Accepted => {
                let port = self.connection.ports().host;
                self.backlog = Backlog::with_greeting(&greeting::accepted(port));
                self.connection.host_readable();
                self.flush();
            }
            Received::Data => self.forward(data, header.len),
            Received::Nothing | Received::Shutdown | Received::Broken | Received::Reset => {}
        }
        self.pass_on_ends();
    }

    /// Passes the guest's data on: into the socket as far as it takes it, the rest into the
    /// backlog.
    fn forward(&mut self, data: &mut Reader<'_>, len: u32) {
        let mut left = len as usize;
        while left > 0 && self.backlog.is_empty() {
            let Some(stream) = &self.stream else {
                return self.host_closed();
            };
            match stream.send_from(data, left) {
                Ok(sent) => {
                    left -= sent;
                    self.forwarded(sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.host_closed(),
            }
        }
        if left > 0
            && self
                .backlog
                .append(left, |part| data.read_exact(part))
                .is_err()
        {
            // The caller has checked that the data is there.
            self.connection.reset();
        }
    }

    /// Writes the backlog, as far as the socket takes it.
    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let Some(stream) = &self.stream else {
                return self.host_closed();
            };
            match stream.send(&self.backlog.slices()) {
                Ok(sent) => {
                    let of_the_guest = self.backlog.consume(sent);
                    self.forwarded(of_the_guest);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.host_closed(),
            }
        }
    }

    fn forwarded(&mut self, len: usize) {
        // A packet has at most u32::MAX bytes, and so has the backlog.
        self.connection
            .forwarded(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// The host reads no more.
    fn host_closed(&mut self) {
        self.backlog = Backlog::default();
        self.connection.host_closed();
    }

    /// Something happened at the host's socket.
    pub fn stream_ready(&mut self, events: EventFlags) {
        if events.contains(EventFlags::OUT) {
            self.flush();
        }
        // Told when no byte can go from us to the host any more, whoever ended that direction. What
        // the host wrote before is still there to be read.
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.host_closed();
        }
        self.connection.host_readable();
        self.pass_on_ends();
    }

    /// The next packet to the guest; its data is read into `buffer`.
    pub fn next(&mut self, buffer: &mut Buffer<'_>) -> Next {
        let next = loop {
            match self.connection.due() {
                Due::Nothing => break Next::Nothing,
                Due::Control(op) => break Next::Packet(self.connection.control(op)),
                Due::Data(_) if buffer.data().remaining() == 0 => break Next::TooSmall,
                Due::Data(window) => {
                    if let Some(len) = self.receive_from_host(buffer, window) {
                        break Next::Packet(self.connection.data(len));
                    }
                }
            }
        };
        self.pass_on_ends();
        next
    }

    /// Reads the host's next bytes: how many, or `None` if there are none (and the connection knows
    /// why).
    fn receive_from_host(&mut self, buffer: &mut Buffer<'_>, window: u32) -> Option<u32> {
        let Some(stream) = &self.stream else {
            self.connection.host_ended();
            return None;
        };
        match stream.receive_into(buffer.data(), window as usize) {
            Ok(0) => self.connection.host_ended(),
            // Never more than the window.
            Ok(len) => return Some(u32::try_from(len).unwrap_or(window)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.connection.host_blocked(),
            Err(_) => {
                self.host_closed();
                self.connection.host_ended();
            }
        }
        None
    }

    /// Tells the host of the guest's ends, once the data before them is through.
    fn pass_on_ends(&mut self) {
        let Some(stream) = &self.stream else {
            return;
        };
        if self.connection.host_finished() && self.backlog.is_empty() {
            self.stream = None;
            return;
        }
        if !self.writing_ended && !self.connection.guest_sends() && self.backlog.is_empty() {
            self.writing_ended = true;
            stream.end_writing();
        }
        if !self.reading_ended && !self.connection.guest_receives() {
            self.reading_ended = true;
            stream.end_reading();
        }
    }
}
