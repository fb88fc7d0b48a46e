// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attacks with the first words that the host hears.

use std::fs::File;
use std::io::{self, Write};

use coracle_agent_api::{Hello, READY_PORT};

use crate::vsock;

/// Says what an agent says; what is returned is the sign of life.
pub fn say() -> io::Result<File> {
    let stream = vsock::connect(READY_PORT)?;
    let hello = Hello {
        version: "0.0.0".into(),
    };
    hello.write(&stream)?;
    Ok(stream)
}

/// A line that never ends.
pub fn without_an_end() -> io::Result<()> {
    let mut stream = vsock::connect(READY_PORT)?;
    let piece = vec![b'x'; 64 << 10];
    loop {
        stream.write_all(&piece)?;
    }
}

/// A line that says nothing, with what steers a terminal.
pub fn of_rubbish() -> io::Result<()> {
    let mut stream = vsock::connect(READY_PORT)?;
    stream.write_all(b"\x1b]0;owned\x07\xff\x00{\"version\"\n")?;
    crate::stay(stream);
    Ok(())
}
