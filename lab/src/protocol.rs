// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the two ends of a lab say to each other over one virtio-serial port.
//!
//! A message is a kind (one byte), the length of its body (four bytes, little endian) and the body.
//! Bodies are bounded, and standard input is sent only as the lab takes it, so neither end buffers
//! without limit and neither can block the other for ever.

use std::io::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The name of the virtio-serial port.
pub const PORT_NAME: &str = "lab";

/// The longest body of a message, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// How many bytes of standard input may be under way to the lab at once.
pub const STDIN_WINDOW: usize = 64 * 1024;

/// Where in the lab results are left for `--out`.
pub const RESULTS_DIRECTORY: &str = "/out";

/// Where in the lab a payload without a destination goes.
pub const PAYLOAD_DIRECTORY: &str = "/payload";

/// Why the other end's bytes are no message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The body is longer than [`MAX_BODY`].
    #[error("a message of kind {kind} announces {length} bytes, more than {MAX_BODY}")]
    TooLong {
        /// The message's kind.
        kind: u8,
        /// The length that it announces, in bytes.
        length: usize,
    },
    /// The kind is not one of this direction.
    #[error("there is no message of kind {0}")]
    UnknownKind(u8),
    /// The body does not fit the kind.
    #[error("the body of a message of kind {0} is malformed")]
    BadBody(u8),
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A command to run in the lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Variables added to the lab's environment.
    pub environment: Vec<(String, String)>,
    /// Length in bytes of the tar archive on the payload disk; 0 for none.
    pub payload_length: u64,
    /// Run on a pseudo-terminal of this size; standard error is then part of standard output.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input follows; without it the command reads an empty one.
    pub stdin: bool,
    /// Whether [`RESULTS_DIRECTORY`] is to be sent once the command has ended.
    pub results: bool,
    /// What the lab's clock is set to, in nanoseconds since 1970, and fresh entropy for its random
    /// numbers. A restored lab has the clock and the entropy of its snapshot; a counting lab keeps them.
    pub freshness: Option<Freshness>,
}

/// What differs between two restores of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Seconds since 1970.
    pub seconds: u64,
    /// Nanoseconds of the second.
    pub nanoseconds: u32,
    /// Random bytes.
    pub entropy: Vec<u8>,
}

/// A message of one direction.
pub trait Message: Sized {
    /// The message's kind and body.
    fn parts(&self) -> (u8, Vec<u8>);

    /// The message of a kind and a body.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if the kind is unknown or the body does not fit it.
    fn from_parts(kind: u8, body: Vec<u8>) -> Result<Self, ProtocolError>;

    /// Writes the message.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    fn send(&self, writer: &mut impl Write) -> std::io::Result<()> {
        let (kind, body) = self.parts();
        let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
        let mut frame = Vec::with_capacity(body.len().saturating_add(5));
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&body);
        writer.write_all(&frame)
    }
}

/// To the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToLab {
    /// Asks for [`FromLab::Alive`].
    Ping,
    /// Runs a command.
    Run(Command),
    /// Bytes for the command's standard input.
    Stdin(Vec<u8>),
    /// The end of the command's standard input.
    StdinEnd,
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// Asks for [`FromLab::Report`]: what every process waits for.
    Report,
}

impl Message for ToLab {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Ping => (1, Vec::new()),
            Self::Run(command) => (2, to_json(command)),
            Self::Stdin(bytes) => (3, bytes.clone()),
            Self::StdinEnd => (4, Vec::new()),
            Self::Resize(size) => (5, to_json(size)),
            Self::Report => (6, Vec::new()),
        }
    }

    fn from_parts(kind: u8, body: Vec<u8>) -> Result<Self, ProtocolError> {
        Ok(match kind {
            1 => Self::Ping,
            2 => Self::Run(from_json(kind, &body)?),
            3 => Self::Stdin(body),
            4 => Self::StdinEnd,
            5 => Self::Resize(from_json(kind, &body)?),
            6 => Self::Report,
            _ => return Err(ProtocolError::UnknownKind(kind)),
        })
    }
}

/// From the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLab {
    /// The lab is up (sent once, unasked), or answers [`ToLab::Ping`].
    Alive,
    /// Bytes of the command's standard output.
    Stdout(Vec<u8>),
    /// Bytes of the command's standard error.
    Stderr(Vec<u8>),
    /// So many bytes of standard input were taken.
    StdinTaken(u32),
    /// A piece of the tar archive of the results.
    Results(Vec<u8>),
    /// The command ended with this status (128 + n for signal n). Nothing of it follows.
    Exited(u8),
    /// The command could not be run at all.
    Failed(String),
    /// The processes and what they wait for, as text.
    Report(String),
}

impl Message for FromLab {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Alive => (128, Vec::new()),
            Self::Stdout(bytes) => (129, bytes.clone()),
            Self::Stderr(bytes) => (130, bytes.clone()),
            Self::StdinTaken(count) => (131, count.to_le_bytes().to_vec()),
            Self::Results(bytes) => (132, bytes.clone()),
            Self::Exited(status) => (133, vec![*status]),
            Self::Failed(reason) => (134, reason.clone().into_bytes()),
            Self::Report(text) => (135, text.clone().into_bytes()),
        }
    }

    fn from_parts(kind: u8, body: Vec<u8>) -> Result<Self, ProtocolError> {
        let malformed = || ProtocolError::BadBody(kind);
        Ok(match kind {
            128 => Self::Alive,
            129 => Self::Stdout(body),
            130 => Self::Stderr(body),
            131 => Self::StdinTaken(u32::from_le_bytes(
                body.try_into().map_err(|_| malformed())?,
            )),
            132 => Self::Results(body),
            133 => match body[..] {
                [status] => Self::Exited(status),
                _ => return Err(malformed()),
            },
            134 => Self::Failed(String::from_utf8(body).map_err(|_| malformed())?),
            135 => Self::Report(String::from_utf8(body).map_err(|_| malformed())?),
            _ => return Err(ProtocolError::UnknownKind(kind)),
        })
    }
}

/// Puts messages together from bytes as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if the bytes are no message; the stream is then lost.
    pub fn decode<M: Message>(&mut self) -> Result<Option<M>, ProtocolError> {
        let Some((&[kind, a, b, c, d], rest)) = self.bytes.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_BODY {
            return Err(ProtocolError::TooLong { kind, length });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = M::from_parts(kind, body.to_vec())?;
        self.bytes.drain(..5 + length);
        Ok(Some(message))
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // The types above hold strings, numbers and lists of them: they always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_json<T: for<'de> Deserialize<'de>>(kind: u8, body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(|_| ProtocolError::BadBody(kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_lab() -> impl Strategy<Value = FromLab> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            Just(FromLab::Alive),
            bytes().prop_map(FromLab::Stdout),
            bytes().prop_map(FromLab::Stderr),
            any::<u32>().prop_map(FromLab::StdinTaken),
            bytes().prop_map(FromLab::Results),
            any::<u8>().prop_map(FromLab::Exited),
            any::<String>().prop_map(FromLab::Failed),
            any::<String>().prop_map(FromLab::Report),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(
            messages in proptest::collection::vec(from_lab(), 0..8),
            piece in 1_usize..64,
        ) {
            let mut wire = Vec::new();
            for message in &messages {
                message.send(&mut wire).unwrap();
            }

            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            for bytes in wire.chunks(piece) {
                decoder.push(bytes);
                while let Some(message) = decoder.decode::<FromLab>().unwrap() {
                    received.push(message);
                }
            }

            prop_assert_eq!(received, messages);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);

            while let Ok(Some(_)) = decoder.decode::<ToLab>() {}
        }
    }

    #[test]
    fn command_survives_the_wire() {
        let command = Command {
            arguments: vec!["sh".into(), "-c".into(), "echo ü".into()],
            environment: vec![("A".into(), "b=c".into())],
            payload_length: 7,
            terminal: Some(TerminalSize {
                rows: 24,
                columns: 80,
            }),
            stdin: true,
            results: true,
            freshness: Some(Freshness {
                seconds: 1,
                nanoseconds: 2,
                entropy: vec![3],
            }),
        };
        let mut wire = Vec::new();
        ToLab::Run(command.clone()).send(&mut wire).unwrap();

        let mut decoder = Decoder::default();
        decoder.push(&wire);

        assert_eq!(decoder.decode(), Ok(Some(ToLab::Run(command))));
    }

    #[test]
    fn body_beyond_the_limit_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[3, 0xff, 0xff, 0xff, 0xff]);

        let result = decoder.decode::<ToLab>();

        assert_eq!(
            result,
            Err(ProtocolError::TooLong {
                kind: 3,
                length: 0xffff_ffff
            })
        );
    }

    #[test]
    fn kind_of_the_other_direction_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[128, 0, 0, 0, 0]);

        assert_eq!(
            decoder.decode::<ToLab>(),
            Err(ProtocolError::UnknownKind(128))
        );
    }
}
