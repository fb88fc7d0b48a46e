// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of JSON, and descriptors, on a Unix socket. The end that serves never waits; the one that asks does.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::run::through_descriptor;

/// Name of the socket in a container's state directory.
const SOCKET: &str = "control";
/// The most bytes of a line: a command and its environment may be long.
const LINE: usize = 4 << 20;
/// The most descriptors of a message.
const DESCRIPTORS: usize = 3;
/// Bytes that are read at once.
const PIECE: usize = 8 << 10;

/// Where connections are taken.
pub struct Listener(UnixListener);

/// One end of a connection.
pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// How much of it has no line's end.
    seen: usize,
    descriptors: Vec<OwnedFd>,
}

/// Why there are no more messages.
#[derive(Debug, Error)]
pub enum ReceiveError {
    #[error("the other end hung up")]
    HungUp,
    /// The connection is as before.
    #[error("a message makes no sense")]
    Nonsense(#[source] serde_json::Error),
    #[error("a message has more than {LINE} bytes")]
    TooLong,
    #[error("cannot receive a message")]
    Socket(#[source] Errno),
}

impl Listener {
    /// Listens in a container's state directory.
    pub fn bind(state: &Path) -> Result<Self> {
        let path = state.join(SOCKET);
        let listener = through_descriptor(&path, UnixListener::bind)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        listener
            .set_nonblocking(true)
            .context("cannot set up a socket")?;
        Ok(Self(listener))
    }

    /// A connection that has come, if any.
    pub fn accept(&self) -> Option<Connection> {
        // Whoever hung up again is none.
        let (stream, _) = self.0.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Connection::new(stream))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// One end, on a stream that is connected.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: Vec::new(),
            seen: 0,
            descriptors: Vec::new(),
        }
    }

    /// Connects to the process that runs the container with this state directory.
    pub fn open(state: &Path) -> io::Result<Self> {
        through_descriptor(&state.join(SOCKET), UnixStream::connect).map(Self::new)
    }

    /// Sends a message, with descriptors beside it. Its peer takes it at once, or has gone.
    pub fn send(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        send_line(&self.stream, message, descriptors)
    }

    /// The next message; nothing if it has not come whole within `patience`. Without one, it waits as long as it takes.
    ///
    /// # Errors
    ///
    /// Where the peer hung up, or speaks no sense.
    pub fn receive<M: DeserializeOwned>(
        &mut self,
        patience: Option<Duration>,
    ) -> Result<Option<M>, ReceiveError> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let mut readable = [PollFd::new(&self.stream, PollFlags::IN)];
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut readable, timeout.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => self.gather()?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(ReceiveError::Socket(error)),
            }
        }
    }

    /// Takes in a piece of what has come by now, and never waits: whoever sends without end keeps nobody from others.
    pub fn gather(&mut self) -> Result<(), ReceiveError> {
        if self.incoming.len() >= LINE && self.seen == self.incoming.len() {
            return Err(ReceiveError::TooLong);
        }
        match self.receive_piece() {
            Ok(0) => Err(ReceiveError::HungUp),
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => Err(ReceiveError::Socket(error)),
        }
    }

    /// The next message of what was gathered.
    pub fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ReceiveError> {
        let unseen = &self.incoming[self.seen..];
        let Some(length) = unseen.iter().position(|byte| *byte == b'\n') else {
            self.seen = self.incoming.len();
            return Ok(None);
        };
        let line: Vec<u8> = self.incoming.drain(..=self.seen + length).collect();
        self.seen = 0;
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(ReceiveError::Nonsense)
    }

    /// The descriptors that have come with messages.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    fn receive_piece(&mut self) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut piece = [0; PIECE];
        let received = recvmsg(
            &self.stream,
            &mut [io::IoSliceMut::new(&mut piece)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?
        .bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    // More than any message has are closed.
                    if self.descriptors.len() < DESCRIPTORS {
                        self.descriptors.push(descriptor);
                    }
                }
            }
        }
        self.incoming.extend_from_slice(&piece[..received]);
        Ok(received)
    }
}

/// Sends a message as a line of JSON, with descriptors beside it.
pub fn send_line(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("cannot write a message")?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ensure!(
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
            "{} descriptors are more than a message holds",
            descriptors.len()
        );
    }
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        let sent = match sendmsg(
            stream,
            &[io::IoSlice::new(rest)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => continue,
            sent => sent.context("cannot send a message")?,
        };
        rest = &rest[sent..];
        ancillary.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;

    use super::super::{Answer, Request};
    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);
    const SOON: Option<Duration> = Some(Duration::from_secs(10));

    fn pair() -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours), Connection::new(theirs))
    }

    #[test]
    fn message_comes_whole_or_not_at_all() {
        let (mut serving, asking) = pair();
        let mut stream = &asking.stream;
        stream.write_all(b"{\"request\":\"us").unwrap();
        assert_eq!(serving.receive::<Request>(NOW).unwrap(), None);

        stream
            .write_all(b"age\"}\n{\"request\":\"end\"}\n")
            .unwrap();

        assert_eq!(serving.receive(SOON).unwrap(), Some(Request::Usage));
        assert_eq!(serving.next().unwrap(), Some(Request::End));
        assert_eq!(serving.receive::<Request>(NOW).unwrap(), None);
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (mut serving, mut asking) = pair();
        let (mut read, write) = io::pipe().unwrap();
        serving.send(&Answer::Streams, &[write.as_fd()]).unwrap();
        drop(write);

        assert_eq!(asking.receive(SOON).unwrap(), Some(Answer::Streams));

        let [write] = <[OwnedFd; 1]>::try_from(asking.take_descriptors()).unwrap();
        std::fs::File::from(write).write_all(b"through").unwrap();
        let mut found = String::new();
        read.read_to_string(&mut found).unwrap();
        assert_eq!(found, "through");
    }

    #[test]
    fn more_descriptors_than_a_message_has_are_closed() {
        let (mut serving, mut asking) = pair();
        for _ in 0..3 {
            let own = asking.stream.try_clone().unwrap();
            asking
                .send(&Request::Dump, &[own.as_fd(), own.as_fd()])
                .unwrap();
            assert_eq!(serving.receive(SOON).unwrap(), Some(Request::Dump));
        }

        assert_eq!(serving.take_descriptors().len(), DESCRIPTORS);
    }

    #[test]
    fn message_that_has_no_end_is_refused_before_long() {
        let (mut serving, asking) = pair();
        let writer = thread::spawn(move || (&asking.stream).write_all(&vec![b'x'; 2 * LINE]));
        let began = Instant::now();

        let error = serving.receive::<Request>(None).unwrap_err();

        assert!(matches!(error, ReceiveError::TooLong), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(serving);
        writer.join().unwrap().unwrap_err();
    }

    #[test]
    fn peer_that_dribbles_is_given_up_in_time() {
        let (serving, mut asking) = pair();
        let dribbler = thread::spawn(move || {
            while (&serving.stream).write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let began = Instant::now();

        let answer = asking
            .receive::<Answer>(Some(Duration::from_millis(200)))
            .unwrap();

        assert_eq!(answer, None);
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(asking);
        dribbler.join().unwrap();
    }

    #[test]
    fn peer_that_hung_up_is_an_error() {
        let (mut serving, asking) = pair();
        drop(asking);

        let error = serving.receive::<Request>(SOON).unwrap_err();

        assert!(matches!(error, ReceiveError::HungUp), "{error}");
    }

    #[test]
    fn nonsense_is_an_error_and_the_next_message_is_none() {
        let (mut serving, asking) = pair();
        (&asking.stream)
            .write_all(b"hello\n{\"request\":\"end\"}\n")
            .unwrap();

        let error = serving.receive::<Request>(SOON).unwrap_err();

        assert!(matches!(error, ReceiveError::Nonsense(_)), "{error}");
        assert_eq!(serving.receive(SOON).unwrap(), Some(Request::End));
    }
}
