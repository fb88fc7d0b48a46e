// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked of the process that runs a container, and what it answers.

use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Sends a signal: to the container's first process, or, on a connection that executes a command, to that.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Ends the machine at once, as if its power were cut.
    End,
    /// Runs a command in the container.
    Exec(Exec),
    /// Sets the size of the executed command's terminal.
    Resize(Size),
    /// Asks what the container uses.
    Usage,
    /// Writes the guest's memory and registers to the file whose descriptor comes with it.
    Dump,
    /// Asks for the guest's console.
    Console,
}

/// A command to be executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Its words.
    pub command: Vec<String>,
    /// Variables, `KEY=VALUE`, over those of the container.
    pub env: Vec<String>,
    /// The directory it starts in; the container's own unless named.
    pub workdir: Option<String>,
    /// Whom it runs as; as the container's own command does unless named.
    pub user: Option<String>,
    /// Whether it has a standard input.
    pub stdin: bool,
    /// Its terminal, if it has one.
    pub terminal: Option<Size>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done,
    /// With it come descriptors. Of a command, which is about to start: its standard output, its standard error unless
    /// it has a terminal, and its standard input if it has one. Of a console: its log, and what is typed into it.
    Streams,
    /// The command has ended.
    Exited {
        /// With this status.
        status: u8,
    },
    /// What the container uses.
    Usage(Usage),
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
        /// The exit status that tells it, if there is a customary one.
        status: Option<u8>,
    },
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of its processes in the guest, in microseconds.
    pub cpu_usec: u64,
    /// Memory of its processes in the guest, in bytes.
    pub memory: u64,
    /// Memory of its machine, in bytes.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from and written to disks.
    pub block: [u64; 2],
    /// Bytes received from and sent to networks.
    pub network: [u64; 2],
    /// Processor time of the machine on the host, in microseconds.
    pub host_cpu_usec: u64,
    /// Memory of the machine's processes on the host, in bytes.
    pub host_memory: u64,
}
