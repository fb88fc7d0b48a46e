// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is told on standard error besides the error that ends a run.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::{Error, Result, anyhow};
use tracing_subscriber::filter::LevelFilter;

use crate::printable::printable;

/// The variable of the environment that sets how much is told.
pub const VARIABLE: &str = "CORACLE_LOG";

/// Tells what all crates have to say, at the level that the environment sets, else at `default`.
pub fn start(default: LevelFilter) -> Result<()> {
    let level = match std::env::var_os(VARIABLE) {
        None => default,
        Some(word) => parse(&word.to_string_lossy())?,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        // It would tell on standard error that standard error takes nothing, and end the process where that fails.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Tells a line on standard error. Where that takes nothing, on a full disk or from a reader that went away, there is
/// nobody to be told, and a container does not end for it.
pub fn tell(line: impl Display) {
    prompt(format_args!("{line}\n"));
}

/// Tells of a failure.
pub fn tell_failure(error: &Error) {
    tell(format_args!(
        "coracle: {}",
        printable(&format!("{error:#}"))
    ));
}

/// As [`tell`], without the line's end.
pub fn prompt(text: impl Display) {
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

fn parse(word: &str) -> Result<LevelFilter> {
    word.parse().map_err(|_| {
        anyhow!("{VARIABLE} is `{word}`, and should be off, error, warn, info, debug or trace")
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("off", LevelFilter::OFF)]
    #[case("warn", LevelFilter::WARN)]
    #[case("trace", LevelFilter::TRACE)]
    fn level_is_a_word(#[case] word: &str, #[case] level: LevelFilter) {
        assert_eq!(parse(word).unwrap(), level);
    }

    #[test]
    fn other_word_is_refused() {
        assert_eq!(
            parse("loud").unwrap_err().to_string(),
            "CORACLE_LOG is `loud`, and should be off, error, warn, info, debug or trace"
        );
    }
}
