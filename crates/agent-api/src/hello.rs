// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one line by which the agent says that it serves.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most bytes a hello line may have. A guest that never ends its line must not make the host remember it.
const LINE_MAX: u64 = 1024;

/// What the agent writes, as one line of JSON, to [`READY_PORT`](crate::READY_PORT).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the agent's crate.
    pub version: String,
}

/// Why no hello could be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The connection failed.
    #[error("cannot read the agent's hello")]
    Io(#[source] io::Error),
    /// The connection ended, or the line is longer than a hello can be.
    #[error("the agent's hello ended after {0} bytes without a line")]
    Incomplete(usize),
    /// The line is not a hello.
    #[error("the agent's hello is not one: `{line}`")]
    Invalid {
        /// What came instead, control characters escaped.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Hello {
    /// Reads one hello line.
    ///
    /// # Errors
    ///
    /// [`HelloError`] says what came instead.
    pub fn read(stream: impl BufRead) -> Result<Self, HelloError> {
        let mut line = Vec::new();
        stream
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(HelloError::Io)?;
        if line.last() != Some(&b'\n') {
            return Err(HelloError::Incomplete(line.len()));
        }
        serde_json::from_slice(&line).map_err(|source| HelloError::Invalid {
            line: line.trim_ascii_end().escape_ascii().to_string(),
            source,
        })
    }

    /// Writes this hello as one line.
    ///
    /// # Errors
    ///
    /// The stream's own.
    pub fn write(&self, mut stream: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        stream.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn hello_that_is_written_is_read_again() {
        let hello = Hello {
            version: "1.2.3".to_owned(),
        };
        let mut line = Vec::new();

        hello.write(&mut line).unwrap();

        assert_eq!(Hello::read(line.as_slice()).unwrap(), hello);
    }

    #[rstest]
    #[case::nothing(b"", "the agent's hello ended after 0 bytes without a line")]
    #[case::no_line(
        b"{\"version\":",
        "the agent's hello ended after 11 bytes without a line"
    )]
    #[case::not_json(b"\x1b[2Jhi\n", "the agent's hello is not one: `\\x1b[2Jhi`")]
    fn other_lines_are_refused(#[case] input: &[u8], #[case] message: &str) {
        let error = Hello::read(input).unwrap_err();

        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn endless_line_is_refused_after_its_bound() {
        let error = Hello::read(io::BufReader::new(io::repeat(b'x'))).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the agent's hello ended after 1024 bytes without a line"
        );
    }
}
