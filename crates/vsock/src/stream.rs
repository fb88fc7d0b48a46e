// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's end of a connection: a Unix stream socket that never blocks.
//!
//! Data moves between the socket and guest memory without a copy in between.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_virtio::{Reader, Writer};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};

/// How many ranges one system call takes (`IOV_MAX`).
const MAX_RANGES: usize = 1024;

/// A connected socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    /// A socket that was accepted, and made not to block.
    pub const fn accepted(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// [`Errno::AGAIN`] if the listener has no room for another connection just now; others if
    /// there is no listener.
    pub fn connect(path: &Path) -> Result<Self, Errno> {
        let address = SocketAddrUnix::new(path)?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&fd, &address)?;
        Ok(Self { fd })
    }

    /// Looks at the first bytes without taking them. No bytes: the end.
    pub fn peek(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (_, len) = rustix::net::recv(&self.fd, buffer, RecvFlags::PEEK)?;
        Ok(len)
    }

    /// Takes bytes that [`peek`](Self::peek) has shown.
    pub fn take(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (_, len) = rustix::net::recv(&self.fd, buffer, RecvFlags::empty())?;
        Ok(len)
    }

    /// Writes as much as the socket takes now.
    pub fn send(&self, bytes: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let mut no_descriptors = SendAncillaryBuffer::default();
        rustix::net::sendmsg(&self.fd, bytes, &mut no_descriptors, SendFlags::NOSIGNAL)
    }

    /// Writes the guest's next bytes, at most `max_len`, as many as the socket takes now.
    ///
    /// Not [`Reader::write_to`], since that could raise SIGPIPE, and a library does not own the
    /// process's signals.
    pub fn send_from(&self, reader: &mut Reader<'_>, max_len: usize) -> Result<usize, Errno> {
        let ranges = reader.iovecs(max_len);
        // SAFETY: a message header of zeros is one without address, ranges and control data.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = ranges.as_ptr().cast_mut();
        message.msg_iovlen = ranges.len().min(MAX_RANGES) as _;
        // SAFETY: the ranges are guest memory, which the reader's chain keeps mapped; the kernel
        // only reads it, and the list of ranges, and keeps no address.
        let sent =
            unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        let sent = usize::try_from(sent).map_err(|_| errno(&io::Error::last_os_error()))?;
        // The kernel never takes more than it was given.
        reader.skip(sent).map_err(|_| Errno::IO)?;
        Ok(sent)
    }

    /// Reads what is there, at most `max_len` bytes, into guest memory. No bytes: the end.
    pub fn receive_into(&self, writer: &mut Writer<'_>, max_len: usize) -> Result<usize, Errno> {
        writer
            .read_from(&self.fd, max_len)
            .map_err(|error| errno(&error))
    }

    /// Tells the host that no more data comes. What was written before still arrives.
    pub fn end_writing(&self) {
        // Fails only if the host has gone, who then needs no telling.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Tells the host that no more of its data is taken.
    pub fn end_reading(&self) {
        // As above.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
