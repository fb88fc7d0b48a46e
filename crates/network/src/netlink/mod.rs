// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests to the kernel over netlink, one at a time, each answered before the next: a start makes a few dozen.

mod control;
mod flows;
pub(crate) mod link;
pub(crate) mod route;

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt,
};

/// The kernel answers while it takes the request; this is for the case that it never does.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel fills at most 32 KiB in one part of a dump.
const RECEIVE_BUFFER: usize = 64 << 10;

/// A list that changes while it is read is read again, so often.
const DUMP_ATTEMPTS: u32 = 8;

/// One socket of one netlink family.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Links, addresses, routes and neighbours.
    pub(crate) fn route() -> io::Result<Self> {
        Self::new(None)
    }

    /// Packet filters and connection tracking.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::new(Some(rustix::net::netlink::NETFILTER))
    }

    fn new(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Asks for a change, and waits until it is made.
    pub(crate) fn change<M>(
        &mut self,
        message: impl Into<NetlinkPayload<M>>,
        flags: u16,
    ) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let sequence = self.send(message.into(), NLM_F_ACK | flags)?;
        self.answer::<M>(sequence).map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get<M>(&mut self, message: impl Into<NetlinkPayload<M>>) -> io::Result<M>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let sequence = self.send(message.into(), 0)?;
        self.answer::<M>(sequence)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODATA))
    }

    /// Asks for all objects. What this program cannot decode is left out: the kernel may be newer.
    pub(crate) fn list<M>(&mut self, message: impl Into<NetlinkPayload<M>>) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Clone,
    {
        self.pick(message, Some)
    }

    /// The same of those that are wanted: there may be too many to have them all in memory.
    pub(crate) fn pick<M, T>(
        &mut self,
        message: impl Into<NetlinkPayload<M>>,
        want: impl Fn(M) -> Option<T>,
    ) -> io::Result<Vec<T>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Clone,
    {
        let message = message.into();
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(message.clone(), NLM_F_DUMP)?;
            let mut found = Vec::new();
            let mut was_interrupted = false;
            'parts: loop {
                for answer in self.receive::<M>()? {
                    let Some((header, payload)) = answer else {
                        continue;
                    };
                    if header.sequence_number != sequence {
                        continue;
                    }
                    was_interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                    match payload {
                        NetlinkPayload::InnerMessage(message) => found.extend(want(message)),
                        NetlinkPayload::Error(error) if error.code.is_some() => {
                            return Err(error.to_io());
                        }
                        NetlinkPayload::Done(done) if done.code < 0 => {
                            return Err(io::Error::from_raw_os_error(-done.code));
                        }
                        NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => break 'parts,
                        _ => {}
                    }
                }
            }
            if !was_interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// Sends several messages as one, and waits for the answer to each that asks for one. The first refusal is returned.
    pub(crate) fn batch<M>(&mut self, messages: Vec<NetlinkMessage<M>>) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let mut bytes = Vec::new();
        let mut last = None;
        for mut message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.header.sequence_number = self.sequence;
            message.header.flags |= NLM_F_REQUEST;
            message.finalize();
            if message.header.flags & NLM_F_ACK != 0 {
                last = Some(self.sequence);
            }
            append(&mut bytes, &message);
        }
        // Beside the message the kernel counts its own bookkeeping.
        sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len() * 2 + RECEIVE_BUFFER)?;
        self.send_bytes(&bytes)?;
        let Some(last) = last else { return Ok(()) };
        loop {
            for (header, payload) in self.receive::<M>()?.into_iter().flatten() {
                if let NetlinkPayload::Error(error) = payload {
                    if error.code.is_some() {
                        return Err(error.to_io());
                    }
                    if header.sequence_number == last {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn send<M>(&mut self, payload: NetlinkPayload<M>, flags: u16) -> io::Result<u32>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = Vec::new();
        append(&mut bytes, &message);
        self.send_bytes(&bytes)?;
        Ok(self.sequence)
    }

    fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EMSGSIZE))
        }
    }

    /// The object that answers this request, or none if it is a mere acknowledgement.
    fn answer<M>(&mut self, sequence: u32) -> io::Result<Option<M>>
    where
        M: NetlinkDeserializable + Debug,
    {
        loop {
            for answer in self.receive::<M>()? {
                // Undecodable: there is no more to come of it.
                let Some((header, payload)) = answer else {
                    return Err(io::Error::from_raw_os_error(libc::EBADMSG));
                };
                if header.sequence_number != sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(None),
                    _ => {}
                }
            }
        }
    }

    /// One datagram's messages; none where one cannot be decoded.
    #[expect(clippy::type_complexity, reason = "named in one place alone")]
    fn receive<M>(&mut self) -> io::Result<Vec<Option<(NetlinkHeader, NetlinkPayload<M>)>>>
    where
        M: NetlinkDeserializable + Debug,
    {
        // Not kept: some sockets stay open for as long as a machine runs.
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC).map(|(_, length)| length)
        })
        .map_err(|error| match error {
            rustix::io::Errno::AGAIN => io::Error::from(io::ErrorKind::TimedOut),
            error => error.into(),
        })?;
        let mut rest = buffer
            .get(..received)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let mut messages = Vec::new();
        while let Ok(frame) = NetlinkBuffer::new_checked(rest) {
            let length = frame.length() as usize;
            let message = NetlinkMessage::<M>::deserialize(&rest[..length]);
            if let Err(error) = &message {
                tracing::debug!("a netlink message cannot be decoded: {error}");
            }
            messages.push(message.ok().map(NetlinkMessage::into_parts));
            let aligned = length.next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn append<M: NetlinkSerializable>(bytes: &mut Vec<u8>, message: &NetlinkMessage<M>) {
    let start = bytes.len();
    let end = start + message.buffer_len().next_multiple_of(4);
    bytes.resize(end, 0);
    message.serialize(&mut bytes[start..start + message.buffer_len()]);
}
