// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is told on standard error besides the error that ends a run.

use anyhow::{Result, anyhow};
use tracing_subscriber::filter::LevelFilter;

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
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .init();
    Ok(())
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
