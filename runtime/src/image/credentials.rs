// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The password for a registry: given, from standard input, or typed without being shown.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, bail, ensure};
use coracle_registry::credentials::{Credentials, Secret};

use crate::cli::Login;
use crate::log;
use crate::terminal::Keeper;

/// The most bytes of a password; tokens that stand in for one are long.
const LIMIT: u64 = 64 << 10;

/// What to show the registry.
///
/// To be called while the process has one thread: what keeps the terminal is a fork.
pub fn credentials(login: &Login, from_stdin: bool) -> Result<Credentials> {
    let password = match (&login.password, from_stdin) {
        (Some(_), true) => {
            bail!("the password is given twice: with the user and by --password-stdin")
        }
        (Some(password), false) => password.clone(),
        (None, true) => read_line(io::stdin().lock())?,
        (None, false) => ask(&login.user)?,
    };
    Ok(Credentials::Password {
        user: login.user.clone(),
        password,
    })
}

/// Asks whoever is at the terminal.
fn ask(user: &str) -> Result<Secret> {
    ensure!(
        io::stdin().is_terminal(),
        "standard input is not a terminal, so nobody can be asked for the password of {} (give it with --password-stdin)",
        user.escape_debug()
    );
    // Whatever ends this process, by Ctrl-C as well, the terminal shows again what is typed.
    let keeper = Keeper::start()?;
    if let Some(keeper) = &keeper {
        keeper.hide_typing()?;
    }
    log::prompt(format_args!("Password of {}: ", user.escape_debug()));
    let password = read_line(io::stdin().lock());
    drop(keeper);
    log::tell("");
    password
}

fn read_line(input: impl BufRead) -> Result<Secret> {
    let mut line = Vec::new();
    let mut input = input.take(LIMIT + 1);
    input
        .read_until(b'\n', &mut line)
        .context("cannot read the password")?;
    ensure!(
        line.len() as u64 <= LIMIT,
        "the password has more than {LIMIT} bytes"
    );
    let mut password = String::from_utf8(line)
        .ok()
        .context("the password is not UTF-8 text")?;
    let end = password.trim_end_matches(['\n', '\r']).len();
    password.truncate(end);
    ensure!(!password.is_empty(), "there is no password");
    Ok(password.into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::line("word\n", "word")]
    #[case::other_end("word\r\n", "word")]
    #[case::no_end("word", "word")]
    #[case::spaces_count(" a b \n", " a b ")]
    #[case::first_line_alone("word\nmore\n", "word")]
    fn password_is_a_line(#[case] input: &str, #[case] expected: &str) {
        let password = read_line(input.as_bytes()).unwrap();

        assert_eq!(password.reveal(), expected);
    }

    #[rstest]
    #[case::nothing(b"".to_vec(), "there is no password")]
    #[case::empty_line(b"\n".to_vec(), "there is no password")]
    #[case::no_text(b"\xff\n".to_vec(), "UTF-8")]
    #[case::endless(vec![b'a'; 1 << 17], "more than 65536 bytes")]
    fn other_input_is_refused(#[case] input: Vec<u8>, #[case] expected: &str) {
        let error = read_line(&input[..]).unwrap_err().to_string();

        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn password_is_given_once() {
        let login = "user:word".parse().unwrap();

        let error = credentials(&login, true).unwrap_err();

        assert!(error.to_string().contains("given twice"), "{error}");
    }
}
