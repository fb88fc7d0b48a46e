// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What commands put out.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints on standard output, unless whoever read that has gone.
pub fn print(text: &str) -> Result<()> {
    unless_reader_left(write(text.as_bytes()))
}

/// Writes to standard output at once. A reader that has gone is an error, by which whoever has more to write can end.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// A reader that has gone (`coracle logs -f … | head -1`) has what it wanted: that it was written to is no failure.
pub fn unless_reader_left(written: Result<()>) -> Result<()> {
    let Err(error) = &written else { return written };
    match error.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        _ => written,
    }
}

/// Prints what a program is to read.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write that as JSON")?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::written(Ok(()), true)]
    #[case::reader_left(Err(io::ErrorKind::BrokenPipe.into()), true)]
    #[case::disk_is_full(Err(io::ErrorKind::StorageFull.into()), false)]
    fn only_a_reader_may_fail_a_writer(#[case] written: io::Result<()>, #[case] is_fine: bool) {
        let outcome = unless_reader_left(written.context("cannot write"));

        assert_eq!(outcome.is_ok(), is_fine, "{outcome:?}");
    }
}
