// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent and a process of a container say to each other while the process is being made.
//!
//! ```text
//! agent → process   the bundle's path, then the spec, with the file systems of disks; or the process, for a further one of a container
//! process → agent   Ready, with descriptors, or Failed
//! agent → process   one byte: the start gate opens
//! process → agent   Failed, or the end of the stream: execve closed it
//! ```
//!
//! Each message but the byte is led by its length, four bytes, little-endian.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_agent_api::{AgentError, ErrorKind, SPEC_MAX};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// The longest message: the spec, as long as the host may make it.
const MESSAGE_MAX: usize = SPEC_MAX;

/// The most descriptors that come with a message: file systems of disks with a spec, a process and a terminal with
/// [`Ready`].
pub const DESCRIPTORS_MAX: usize = 32;

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    Ready { process: bool, terminal: bool },
    Failed { kind: i32, message: String },
}

/// What a process waits with at its start gate.
#[derive(Debug, Default)]
pub struct Ready<Fd = OwnedFd> {
    /// The PID descriptor of the process itself, where the one that was started is only its maker.
    pub process: Option<Fd>,
    /// The host's side of its terminal.
    pub terminal: Option<Fd>,
}

/// What a process has to say.
#[derive(Debug)]
pub enum Answer {
    /// It waits at its start gate.
    Ready(Ready),
    /// It could not go on and ends.
    Failed(AgentError),
    /// It said nothing: it executed its command, or was killed.
    Ended,
}

impl Channel {
    /// Talks over `stream`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Makes every wait for the other end fail with `TimedOut` or `WouldBlock` after `deadline`.
    ///
    /// # Errors
    ///
    /// `deadline` is zero.
    pub fn set_deadline(&self, deadline: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(deadline))
    }

    /// The agent hands over what the container is to be, and the file systems of disks in the order in which the spec mounts them.
    ///
    /// # Errors
    ///
    /// The process is gone, or the message is too long.
    pub fn send_container(
        &mut self,
        bundle: &str,
        spec: &[u8],
        disks: &[OwnedFd],
    ) -> io::Result<()> {
        self.send(bundle.as_bytes())?;
        let disks: Vec<_> = disks.iter().map(AsFd::as_fd).collect();
        self.send_with(spec, &disks)
    }

    /// The agent hands over what a further process of a container is to be.
    ///
    /// # Errors
    ///
    /// The process is gone, or the message is too long.
    pub fn send_process(&mut self, process: &[u8]) -> io::Result<()> {
        self.send(process)
    }

    /// A further process of a container takes what it is to be.
    ///
    /// # Errors
    ///
    /// The agent is gone, or says something else.
    pub fn receive_process(&mut self) -> io::Result<Vec<u8>> {
        let (process, _) = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(process)
    }

    /// The process takes what it is to be: the bundle's path, the spec and the file systems of disks.
    ///
    /// # Errors
    ///
    /// The agent is gone, or says something else.
    pub fn receive_container(&mut self) -> io::Result<(String, Vec<u8>, Vec<OwnedFd>)> {
        let (bundle, _) = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (spec, disks) = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bundle = String::from_utf8(bundle).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((bundle, spec, disks))
    }

    /// The process says that it waits at its gate.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn send_ready(&mut self, ready: &Ready<BorrowedFd<'_>>) -> io::Result<()> {
        let report = Report::Ready {
            process: ready.process.is_some(),
            terminal: ready.terminal.is_some(),
        };
        let descriptors: Vec<_> = [ready.process, ready.terminal]
            .into_iter()
            .flatten()
            .collect();
        self.send_with(&serde_json::to_vec(&report)?, &descriptors)
    }

    /// The process says why it ends.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn send_failure(&mut self, error: &AgentError) -> io::Result<()> {
        self.send_report(&Report::Failed {
            kind: error.kind.to_wire(),
            message: error.message.clone(),
        })
    }

    /// The agent waits for what the process has to say.
    ///
    /// # Errors
    ///
    /// The deadline has passed, or the process says something else.
    pub fn receive_answer(&mut self) -> io::Result<Answer> {
        let Some((message, descriptors)) = self.receive()? else {
            return Ok(Answer::Ended);
        };
        let mut descriptors = descriptors.into_iter();
        let mut take = |announced: bool| match announced {
            true => descriptors
                .next()
                .ok_or(io::ErrorKind::InvalidData)
                .map(Some),
            false => Ok(None),
        };
        Ok(match serde_json::from_slice(&message)? {
            Report::Ready { process, terminal } => Answer::Ready(Ready {
                process: take(process)?,
                terminal: take(terminal)?,
            }),
            Report::Failed { kind, message } => {
                Answer::Failed(AgentError::new(ErrorKind::from_wire(kind), message))
            }
        })
    }

    /// The agent opens the start gate.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn open_gate(&mut self) -> io::Result<()> {
        self.stream.write_all(&[1])
    }

    /// The process waits until its start gate opens; `false` if it never will.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub fn wait_at_gate(&mut self) -> io::Result<bool> {
        Ok(self.stream.read(&mut [0])? == 1)
    }

    fn send_report(&mut self, report: &Report) -> io::Result<()> {
        self.send(&serde_json::to_vec(report)?)
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// Sends one message, with descriptors that travel with its length.
    fn send_with(&mut self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let length = length.to_le_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(&length)], &mut control, flags)?;
        self.stream
            .write_all(length.get(sent..).unwrap_or_default())?;
        self.stream.write_all(message)
    }

    /// Receives one message, and the descriptors that came with it; `None` at the end of the stream.
    fn receive(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut length = [0; 4];
        let (received, descriptors) = match self.receive_some(&mut length) {
            // A process that is killed with something unread resets its stream.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            result => result?,
        };
        if received == 0 {
            return Ok(None);
        }
        self.stream
            .read_exact(length.get_mut(received..).unwrap_or_default())?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        self.stream.read_exact(&mut message)?;
        Ok(Some((message, descriptors)))
    }

    /// Receives bytes, one at least unless the stream has ended, and descriptors.
    fn receive_some(&mut self, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(bytes)],
                &mut control,
                flags,
            )
        })?;
        let descriptors = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        Ok((received.bytes, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (agent, process) = UnixStream::pair().unwrap();
        (Channel::new(agent), Channel::new(process))
    }

    #[test]
    fn container_arrives_as_it_was_sent() {
        let (mut agent, mut process) = pair();

        let disk = rustix::event::eventfd(7, rustix::event::EventfdFlags::empty()).unwrap();

        agent.send_container("/run/share", b"{}", &[disk]).unwrap();

        let (bundle, spec, disks) = process.receive_container().unwrap();
        assert_eq!(
            (bundle.as_str(), spec.as_slice()),
            ("/run/share", &b"{}"[..])
        );
        let mut value = [0; 8];
        rustix::io::read(&disks[0], &mut value).unwrap();
        assert_eq!((disks.len(), u64::from_ne_bytes(value)), (1, 7));
    }

    #[test]
    fn failure_keeps_its_kind() {
        let (mut agent, mut process) = pair();
        let error = AgentError::new(ErrorKind::CommandNotFound, "command `x` was not found");

        process.send_failure(&error).unwrap();

        let Answer::Failed(received) = agent.receive_answer().unwrap() else {
            panic!("it failed");
        };
        assert_eq!(received, error);
    }

    #[test]
    fn end_without_a_word_is_told_apart() {
        let (mut agent, process) = pair();

        drop(process);

        assert!(matches!(agent.receive_answer().unwrap(), Answer::Ended));
    }

    #[test]
    fn descriptors_arrive_as_what_they_were_sent() {
        let (mut agent, mut process) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let ready = Ready {
            process: Some(reader.as_fd()),
            terminal: Some(writer.as_fd()),
        };

        process.send_ready(&ready).unwrap();

        let Answer::Ready(received) = agent.receive_answer().unwrap() else {
            panic!("it is ready");
        };
        rustix::io::write(received.terminal.unwrap(), b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(received.process.unwrap(), &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn announced_descriptor_that_is_missing_is_an_error() {
        let (mut agent, mut process) = pair();

        process
            .send(br#"{"Ready":{"process":true,"terminal":false}}"#)
            .unwrap();

        let error = agent.receive_answer().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn gate_opens_once_it_is_opened() {
        let (mut agent, mut process) = pair();

        agent.open_gate().unwrap();

        assert!(process.wait_at_gate().unwrap());
    }

    #[test]
    fn gate_of_an_agent_that_is_gone_never_opens() {
        let (agent, mut process) = pair();

        drop(agent);

        assert!(!process.wait_at_gate().unwrap());
    }

    #[test]
    fn message_longer_than_any_is_refused() {
        let (mut agent, process) = pair();

        (&process.stream)
            .write_all(&u32::MAX.to_le_bytes())
            .unwrap();

        let error = agent.receive_answer().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
