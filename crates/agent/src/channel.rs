// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent and a container's first process say to each other while the container is being made.
//!
//! ```text
//! agent → process   the bundle's path, then the spec
//! process → agent   Ready, or Failed
//! agent → process   one byte: the start gate opens
//! process → agent   Failed, or the end of the stream: execve closed it
//! ```
//!
//! Each message but the byte is led by its length, four bytes, little-endian.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_agent_api::{AgentError, ErrorKind, SPEC_MAX};
use serde::{Deserialize, Serialize};

/// The longest message: the spec, as long as the host may make it.
const MESSAGE_MAX: usize = SPEC_MAX;

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    Ready,
    Failed { kind: i32, message: String },
}

/// What a container's first process has to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It waits at its start gate.
    Ready,
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

    /// The agent hands over what the container is to be.
    ///
    /// # Errors
    ///
    /// The process is gone, or the message is too long.
    pub fn send_container(&mut self, bundle: &str, spec: &[u8]) -> io::Result<()> {
        self.send(bundle.as_bytes())?;
        self.send(spec)
    }

    /// The process takes what it is to be: the bundle's path and the spec.
    ///
    /// # Errors
    ///
    /// The agent is gone, or says something else.
    pub fn receive_container(&mut self) -> io::Result<(String, Vec<u8>)> {
        let bundle = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let spec = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bundle = String::from_utf8(bundle).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((bundle, spec))
    }

    /// The process says that it waits at its gate.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn send_ready(&mut self) -> io::Result<()> {
        self.send_report(&Report::Ready)
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
        let Some(message) = self.receive()? else {
            return Ok(Answer::Ended);
        };
        Ok(match serde_json::from_slice(&message)? {
            Report::Ready => Answer::Ready,
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
        let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.stream.write_all(&length.to_le_bytes())?;
        self.stream.write_all(message)
    }

    /// Receives one message; `None` at the end of the stream.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            // A process that is killed with something unread resets its stream.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            result => result?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        self.stream.read_exact(&mut message)?;
        Ok(Some(message))
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

        agent.send_container("/run/share", b"{}").unwrap();

        let received = process.receive_container().unwrap();
        assert_eq!(received, ("/run/share".to_owned(), b"{}".to_vec()));
    }

    #[test]
    fn failure_keeps_its_kind() {
        let (mut agent, mut process) = pair();
        let error = AgentError::new(ErrorKind::CommandNotFound, "command `x` was not found");

        process.send_failure(&error).unwrap();

        assert_eq!(agent.receive_answer().unwrap(), Answer::Failed(error));
    }

    #[test]
    fn end_without_a_word_is_told_apart() {
        let (mut agent, process) = pair();

        drop(process);

        assert_eq!(agent.receive_answer().unwrap(), Answer::Ended);
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
