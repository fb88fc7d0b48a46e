// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard streams of a process: those to the host, and what is between them and the process, pipes or a terminal.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::pipes::Pipes;
use super::terminal::Terminal;

/// The streams to the host that a process is given; `/dev/null` stands in for those that are absent.
#[derive(Debug, Default)]
pub struct HostStreams {
    /// What the process reads.
    pub stdin: Option<OwnedFd>,
    /// What the process writes.
    pub stdout: Option<OwnedFd>,
    /// What the process complains.
    pub stderr: Option<OwnedFd>,
}

/// The process' ends, to be its descriptors 0, 1 and 2.
#[derive(Debug)]
pub struct ProcessEnds {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

impl ProcessEnds {
    /// `/dev/null` for all three.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn null() -> io::Result<Self> {
        Ok(Self {
            stdin: null()?,
            stdout: null()?,
            stderr: null()?,
        })
    }
}

/// What moves the streams of a process.
#[derive(Debug)]
pub enum Streams {
    /// Each goes its own way.
    Pipes(Pipes),
    /// Both directions of a terminal.
    Terminal(Terminal),
}

impl Streams {
    /// Ends the standard input once what has arrived from the host is delivered.
    pub fn close_stdin(&self) {
        match self {
            Self::Pipes(pipes) => pipes.close_stdin(),
            Self::Terminal(terminal) => terminal.close_stdin(),
        }
    }

    /// Waits until all output of the process, which has ended, is with the host.
    pub fn drain(&self) {
        match self {
            Self::Pipes(pipes) => pipes.drain(),
            Self::Terminal(terminal) => terminal.drain(),
        }
    }
}

pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}
