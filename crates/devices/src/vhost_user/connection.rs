// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests and answers over a socket, within a time limit.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::message::{Body, HEADER_LEN, MAX_REGIONS, Request, answer_len, encode};

/// For how long a negotiation with a back end may last. Back ends answer in microseconds; this is for one that is just
/// starting, on a host that is busy.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// For how long a conversation may last that a vCPU waits for: start or stop. Whoever pauses or debugs the guest waits
/// for that vCPU.
const VCPU_PATIENCE: Duration = Duration::from_secs(4);
/// The longest wait between two looks at the time.
const WAIT: Duration = Duration::from_millis(500);

/// A conversation that went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The back end has gone.
    #[error("the vhost-user back end closed its connection")]
    Closed,
    /// It does not answer.
    #[error("the vhost-user back end did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It does not take what it is sent.
    #[error("the vhost-user back end's answer is none to this request")]
    NoAnswer,
    /// It refused.
    #[error("the vhost-user back end refused, with the code {0}")]
    Refused(u64),
    /// The connection was given up after an earlier error.
    #[error("the connection to the vhost-user back end was given up before")]
    GivenUp,
    /// The socket fails.
    #[error("the vhost-user socket fails")]
    Socket(#[source] io::Error),
}

/// A connection to a back end. An error other than a refusal closes it, for what comes next on it is not known.
pub(super) struct Connection {
    socket: UnixStream,
    /// Of this conversation.
    patience: Duration,
    deadline: Instant,
    /// Whether requests without an answer are acknowledged.
    acknowledges: bool,
    given_up: bool,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, patience: Duration) -> io::Result<Self> {
        // Set once and for all: the thread of a vCPU may not be allowed to.
        let wait = patience.min(WAIT);
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(wait))?;
        socket.set_write_timeout(Some(wait))?;
        Ok(Self {
            socket,
            patience,
            deadline: Instant::now() + patience,
            acknowledges: false,
            given_up: false,
        })
    }

    /// A second handle on the connection, to watch it for the back end's end.
    pub(super) fn watched_socket(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// Begins a conversation that a vCPU waits for: the time limit counts from now on.
    pub(super) fn begin(&mut self) {
        self.patience = self.patience.min(VCPU_PATIENCE);
        self.deadline = Instant::now() + self.patience;
    }

    /// Closes the connection.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        // Gone already is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// From now on each request is acknowledged.
    pub(super) fn expect_acknowledgements(&mut self) {
        self.acknowledges = true;
    }

    pub(super) fn acknowledges(&self) -> bool {
        self.acknowledges
    }

    /// Sends a request that has no answer of its own, and has it acknowledged if the back end can.
    pub(super) fn tell(
        &mut self,
        request: Request,
        body: &Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        if !self.acknowledges {
            return self.converse(|socket| socket.send(request, false, body, descriptors));
        }
        let answer = self.converse(|socket| {
            socket.send(request, true, body, descriptors)?;
            socket.receive::<8>(request)
        })?;
        match u64::from_le_bytes(answer) {
            0 => Ok(()),
            code => Err(ConnectionError::Refused(code)),
        }
    }

    /// Sends a request and gives its answer, which has to be of this length.
    pub(super) fn ask<const LEN: usize>(
        &mut self,
        request: Request,
        body: &Body,
    ) -> Result<[u8; LEN], ConnectionError> {
        self.converse(|socket| {
            socket.send(request, false, body, &[])?;
            socket.receive(request)
        })
    }

    fn converse<T>(
        &mut self,
        exchange: impl FnOnce(&mut Self) -> Result<T, ConnectionError>,
    ) -> Result<T, ConnectionError> {
        if self.given_up {
            return Err(ConnectionError::GivenUp);
        }
        let outcome = exchange(self);
        if outcome.is_err() {
            self.give_up();
        }
        outcome
    }

    fn send(
        &mut self,
        request: Request,
        need_reply: bool,
        body: &Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        let message = encode(request, need_reply, body);
        let mut left = &message[..];
        let mut descriptors = descriptors;
        while !left.is_empty() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_REGIONS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                // The space is for as many as a message has at most.
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let sent = sendmsg(
                &self.socket,
                &[IoSlice::new(left)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            let count = self.progress(sent.map_err(io::Error::from))?;
            left = &left[count..];
            if count > 0 {
                // They went with the first byte.
                descriptors = &[];
            }
        }
        Ok(())
    }

    fn receive<const LEN: usize>(
        &mut self,
        request: Request,
    ) -> Result<[u8; LEN], ConnectionError> {
        let header: [u8; HEADER_LEN] = self.read()?;
        match answer_len(header, request) {
            Some(len) if len == LEN => self.read(),
            _ => Err(ConnectionError::NoAnswer),
        }
    }

    /// Reads this many bytes. Descriptors that come with them, which no answer of ours has, are closed by the kernel.
    fn read<const LEN: usize>(&mut self) -> Result<[u8; LEN], ConnectionError> {
        let mut bytes = [0; LEN];
        let mut done = 0;
        while done < LEN {
            // Not the socket's own method, which takes another system call than a confined thread has for files.
            let read = rustix::io::read(&self.socket, &mut bytes[done..]).map_err(io::Error::from);
            let is_end = matches!(read, Ok(0));
            done += self.progress(read)?;
            if is_end {
                return Err(ConnectionError::Closed);
            }
        }
        Ok(bytes)
    }

    /// What a system call did, if there is time left to go on.
    fn progress(&self, done: io::Result<usize>) -> Result<usize, ConnectionError> {
        let count = match done {
            Ok(count) => count,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => 0,
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                    return Err(ConnectionError::Closed);
                }
                _ => return Err(ConnectionError::Socket(error)),
            },
        };
        if Instant::now() >= self.deadline {
            return Err(ConnectionError::Silent(self.patience));
        }
        Ok(count)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
