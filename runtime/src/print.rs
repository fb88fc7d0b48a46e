// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What commands put out.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints on standard output. A reader that has gone (`coracle ps | head -1`) has what it wanted: that is no error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints what a program is to read.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write that as JSON")?;
    print(&format!("{text}\n"))
}
