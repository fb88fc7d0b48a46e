// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's rtnetlink, as far as a network is set up by it: requests, acknowledgements, and the list of links.
//!
//! It is written out here because the crates for it would add a tenth to the agent's size. The layouts are those of
//! `linux/netlink.h` and `linux/rtnetlink.h`, all numbers in the machine's byte order.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::io::{self, Errno};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// As much as the kernel says at once.
const BUFFER: usize = 32 << 10;

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// A request, on its way to the kernel.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of `kind` (`RTM_...`) with `flags` (`NLM_F_...`), and the fixed part of its body.
    pub(super) fn new(kind: u16, flags: libc::c_int, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        // The flags of requests are the lower half of the number's bits.
        let flags = (flags | libc::NLM_F_REQUEST).to_le_bytes();
        bytes.extend(u16::from_le_bytes([flags[0], flags[1]]).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // Names, addresses and numbers: none is longer than a few bytes.
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    /// Adds a number.
    pub(super) fn with_number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// What the kernel says about a request that it refuses.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// In its own words, if it has any.
    message: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            message: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{message}: {}", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
}

/// A connection to the kernel, about the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // `NETLINK_ROUTE`, which is 0.
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        explain_errors(&socket);
        // The kernel answers at once; should it not, nothing waits for it for ever.
        let deadline = std::time::Duration::from_secs(5);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(deadline))?;
        Ok(Self(socket))
    }

    /// Has the kernel do something.
    pub(super) fn request(&self, request: Request) -> Result<(), Refusal> {
        let mut request = request.finish();
        // Asks for an answer also if all goes well.
        let acknowledge = libc::NLM_F_ACK.to_le_bytes()[0];
        let flags = u16::from_ne_bytes([request[6], request[7]]) | u16::from(acknowledge);
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.send(&request)?;
        let mut done = false;
        while !done {
            self.receive(|message| {
                done |= message.kind == NLMSG_ERROR;
                message.result()
            })?;
        }
        Ok(())
    }

    /// All links of the namespace.
    pub(super) fn links(&self) -> Result<Vec<LinkInfo>, Refusal> {
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; LINK_HEADER]);
        self.send(&request.finish())?;
        let mut links = Vec::new();
        let mut done = false;
        while !done {
            self.receive(|message| {
                done |= message.kind == NLMSG_DONE;
                links.extend(message.link());
                message.result()
            })?;
        }
        Ok(links)
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        io::retry_on_intr(|| rustix::net::send(&self.0, request, SendFlags::empty())).map(drop)
    }

    /// Receives messages and shows each.
    fn receive(
        &self,
        mut show: impl FnMut(Message<'_>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut buffer = vec![0; BUFFER];
        let (length, _) =
            io::retry_on_intr(|| rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((message, after)) = Message::split(rest) {
            show(message)?;
            rest = after;
        }
        Ok(())
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A message of the kernel.
struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits the first message off; `None` if there is no whole one.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = number(bytes)? as usize;
        let message = Self {
            kind: half(bytes.get(4..)?)?,
            flags: half(bytes.get(6..)?)?,
            body: bytes.get(HEADER..length)?,
        };
        Some((message, bytes.get(aligned(length)..).unwrap_or_default()))
    }

    /// What it says of success.
    fn result(&self) -> Result<(), Refusal> {
        if self.kind != NLMSG_ERROR && self.kind != NLMSG_DONE {
            return Ok(());
        }
        let errno = number(self.body).unwrap_or(0).cast_signed();
        if errno == 0 {
            return Ok(());
        }
        Err(Refusal {
            errno: Errno::from_raw_os_error(errno.checked_neg().unwrap_or(libc::EIO)),
            message: self.explanation(),
        })
    }

    /// What an error says for people, after the header of the request that it is about.
    fn explanation(&self) -> Option<String> {
        const CAPPED: u16 = 0x100;
        const EXPLAINED: u16 = 0x200;
        const MESSAGE: u16 = 1;
        if self.flags & EXPLAINED == 0 {
            return None;
        }
        let request = self.body.get(4..)?;
        let length = match self.flags & CAPPED {
            0 => number(request)? as usize,
            _ => HEADER,
        };
        Attributes(request.get(aligned(length)..)?)
            .find(|(kind, _)| *kind == MESSAGE)
            .map(|(_, text)| text_of(text))
    }

    /// The link that it tells of.
    fn link(&self) -> Option<LinkInfo> {
        if self.kind != libc::RTM_NEWLINK {
            return None;
        }
        let index = number(self.body.get(4..)?)?;
        let mut link = LinkInfo {
            index,
            name: String::new(),
            mac: Vec::new(),
        };
        for (kind, value) in Attributes(self.body.get(LINK_HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text_of(value),
                libc::IFLA_ADDRESS => link.mac = value.to_vec(),
                _ => {}
            }
        }
        Some(link)
    }
}

/// Attributes: their kinds and values.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(half(self.0)?);
        let kind = half(self.0.get(2..)?)?;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Asks for the kernel's own words with errors. An old kernel has none.
fn explain_errors(socket: &OwnedFd) {
    use std::os::fd::AsRawFd;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let yes: libc::c_int = 1;
        // SAFETY: the kernel reads a number of the size given, which outlives the call.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const yes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

fn text_of(bytes: &[u8]) -> String {
    let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_has_the_layout_of_the_kernel() {
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE, &[0; 16])
            .with(libc::IFLA_IFNAME, b"eth0\0")
            .with_number(libc::IFLA_MTU, 1400);

        let bytes = request.finish();

        // Header, body, 4 + 5 bytes and 3 of padding, 4 + 4 bytes.
        assert_eq!(bytes.len(), 16 + 16 + 12 + 8);
        assert_eq!(bytes[..8], [52, 0, 0, 0, 16, 0, 1, 4]);
        assert_eq!(bytes[32..44], *b"\x09\0\x03\0eth0\0\0\0\0");
    }

    #[test]
    fn loopback_is_a_link() {
        let links = Socket::open().unwrap().links().unwrap();

        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((loopback.index, loopback.mac.as_slice()), (1, &[0; 6][..]));
    }

    #[test]
    fn refusal_has_the_kernels_number() {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&u32::from(u16::MAX).to_ne_bytes());
        let request = Request::new(libc::RTM_NEWLINK, 0, &body);

        let refusal = Socket::open().unwrap().request(request).unwrap_err();

        assert!(
            matches!(refusal.errno, Errno::NODEV | Errno::PERM),
            "{refusal}"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_received_is_read_without_a_panic(bytes: Vec<u8>) {
            let mut rest = bytes.as_slice();
            while let Some((message, after)) = Message::split(rest) {
                let _ = (message.result(), message.link(), message.explanation());
                prop_assert!(after.len() < rest.len());
                rest = after;
            }
        }
    }
}
