// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of JSON, and descriptors, on a Unix socket. The end that serves never waits; the one that asks does.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    descriptors: Vec<OwnedFd>,
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
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Connects to the process that runs the container with this state directory.
    pub fn open(state: &Path) -> io::Result<Self> {
        through_descriptor(&state.join(SOCKET), UnixStream::connect).map(Self::new)
    }

    /// Has [`Self::receive`] give up after a while, with nothing.
    pub fn wait_no_longer_than(&self, patience: Duration) -> Result<()> {
        self.stream
            .set_read_timeout(Some(patience))
            .context("cannot set up a socket")
    }

    /// Sends a message, with descriptors beside it. Its peer takes it at once, or has gone.
    pub fn send(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        send_line(&self.stream, message, descriptors)
    }

    /// The next message; nothing if it has not come whole yet, on the serving end, or after a while.
    ///
    /// # Errors
    ///
    /// Where the peer hung up, or speaks no sense.
    pub fn receive<M: DeserializeOwned>(&mut self) -> Result<Option<M>> {
        loop {
            if let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.incoming.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .context("a message makes no sense");
            }
            ensure!(self.incoming.len() < LINE, "a message is too long");
            match self.receive_piece() {
                Ok(0) => bail!("the other end hung up"),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error).context("cannot receive a message"),
            }
        }
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
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
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

    use super::super::{Answer, Request};
    use super::*;

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
        assert_eq!(serving.receive::<Request>().unwrap(), None);

        stream
            .write_all(b"age\"}\n{\"request\":\"end\"}\n")
            .unwrap();

        assert_eq!(serving.receive().unwrap(), Some(Request::Usage));
        assert_eq!(serving.receive().unwrap(), Some(Request::End));
        assert_eq!(serving.receive::<Request>().unwrap(), None);
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (mut serving, mut asking) = pair();
        let (mut read, write) = io::pipe().unwrap();
        serving.send(&Answer::Streams, &[write.as_fd()]).unwrap();
        drop(write);

        assert_eq!(asking.receive().unwrap(), Some(Answer::Streams));

        let [write] = <[OwnedFd; 1]>::try_from(asking.take_descriptors()).unwrap();
        std::fs::File::from(write).write_all(b"through").unwrap();
        let mut found = String::new();
        read.read_to_string(&mut found).unwrap();
        assert_eq!(found, "through");
    }

    #[test]
    fn peer_that_hung_up_is_an_error() {
        let (mut serving, asking) = pair();
        drop(asking);

        assert!(serving.receive::<Request>().is_err());
    }

    #[test]
    fn nonsense_is_an_error() {
        let (mut serving, asking) = pair();
        (&asking.stream).write_all(b"hello\n").unwrap();

        let error = serving.receive::<Request>().unwrap_err();

        assert_eq!(error.to_string(), "a message makes no sense");
    }
}
