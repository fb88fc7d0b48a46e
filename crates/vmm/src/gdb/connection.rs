// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The debugger's connection. Whoever waits for it wakes when the machine ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use gdbstub::conn::{Connection, ConnectionExt};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::Stops;

/// A connected debugger.
pub(super) struct Debugger {
    socket: UnixStream,
    /// A packet in the making.
    output: Vec<u8>,
    stops: Arc<Stops>,
}

/// What was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// The descriptor can be read, or its other end is closed.
    Readable,
    /// A vCPU has stopped.
    Stopped,
    /// The machine has ended.
    Ended,
}

/// Waits for `descriptor`, for a vCPU to stop if `stops_count`, and for the machine's end.
pub(super) fn wait_for(
    descriptor: BorrowedFd<'_>,
    stops: &Stops,
    stops_count: bool,
) -> io::Result<Ready> {
    let stopped = if stops_count {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    loop {
        let mut waited = [
            PollFd::new(&stops.ended, PollFlags::IN),
            PollFd::new(&stops.stopped, stopped),
            PollFd::from_borrowed_fd(descriptor, PollFlags::IN),
        ];
        match poll(&mut waited, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [ended, stopped, readable] = waited.map(|waited| !waited.revents().is_empty());
        // What the debugger says comes before another stop, or an interrupt would never be heard.
        match (ended, readable, stopped) {
            (true, ..) => return Ok(Ready::Ended),
            (_, true, _) => return Ok(Ready::Readable),
            (.., true) => return Ok(Ready::Stopped),
            _ => {}
        }
    }
}

impl Debugger {
    pub(super) fn new(socket: UnixStream, stops: Arc<Stops>) -> Self {
        Self {
            socket,
            output: Vec::new(),
            stops,
        }
    }

    /// Waits until the debugger speaks, a vCPU has stopped or the machine has ended.
    pub(super) fn wait(&self) -> io::Result<Ready> {
        wait_for(self.socket.as_fd(), &self.stops, true)
    }
}

impl Connection for Debugger {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(buf);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::write_all(&mut self.socket, &self.output)?;
        self.output.clear();
        Ok(())
    }
}

impl ConnectionExt for Debugger {
    fn read(&mut self) -> io::Result<u8> {
        match wait_for(self.socket.as_fd(), &self.stops, false)? {
            Ready::Ended => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => {
                let mut byte = [0];
                self.socket.read_exact(&mut byte)?;
                Ok(byte[0])
            }
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.socket, &mut byte[..], flags) {
            Ok((0, _)) => Ok(None),
            Ok(_) => Ok(Some(byte[0])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
