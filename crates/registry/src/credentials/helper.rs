// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Docker's credential helpers: `docker-credential-NAME get`, the registry on stdin, JSON on stdout.

use std::process::Command;
use std::time::Duration;

use coracle_subprocess::{Bounds, run};
use serde::Deserialize;

use super::Credentials;
use crate::show::{json_fault, quoted, shown};

/// Most bytes of a helper's answer.
const ANSWER_LIMIT: usize = 64 << 10;
/// Most bytes of a complaint.
const COMPLAINT_LIMIT: usize = 1 << 10;
/// Longest name of a helper.
const NAME_LIMIT: usize = 64;
/// The user that says that the secret is a token for the token server.
const TOKEN_USER: &str = "<token>";
/// What helpers say where they have nothing.
const NOTHING: &str = "credentials not found";

/// A helper's answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// The program of a helper, by its short name; `None` where that is no plain word.
pub(super) fn program(name: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!name.is_empty() && name.len() <= NAME_LIMIT && name.bytes().all(is_plain))
        .then(|| format!("docker-credential-{name}"))
}

/// Asks a helper for what it has under `key`.
pub(super) fn get(
    program: &str,
    key: &str,
    deadline: Duration,
) -> Result<Option<Credentials>, String> {
    let mut command = Command::new(program);
    command.arg("get");
    let bounds = Bounds {
        deadline,
        stdout: ANSWER_LIMIT,
        stderr: COMPLAINT_LIMIT,
        cancel: None,
    };
    let output = run(command, key.as_bytes(), &bounds).map_err(|failure| failure.to_string())?;
    if !output.status.success() {
        // The output can hold anything; only this much of it is agreed upon.
        if String::from_utf8_lossy(&output.stdout).contains(NOTHING) {
            return Ok(None);
        }
        let failed = format!(
            "{program} failed ({}) when asked for {}",
            output.status,
            quoted(key)
        );
        // What it says there is meant for people.
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(match complaint.trim() {
            "" => failed,
            complaint => format!("{failed}: {}", shown(complaint)),
        });
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("the answer of {program} {}", json_fault(&error)))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        (TOKEN_USER, secret) => Some(Credentials::IdentityToken(secret.into())),
        (user, secret) => Some(Credentials::Password {
            user: user.to_owned(),
            password: secret.into(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ask_script(script: &str) -> Result<Option<Credentials>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("helper");
        // Another process writes it: what another test starts meanwhile would have this one's descriptor for a moment, and
        // a file that is open for writing is not run.
        let written = Command::new("sh")
            .args([
                "-c",
                r##"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""##,
            ])
            .args([path.as_os_str(), script.as_ref()])
            .status();
        assert!(written.unwrap().success());
        get(path.to_str().unwrap(), "a.io", Duration::from_secs(20))
    }

    #[rstest]
    #[case("pass", Some("docker-credential-pass"))]
    #[case("ecr-login", Some("docker-credential-ecr-login"))]
    #[case("", None)]
    #[case("../../bin/sh", None)]
    #[case("a b", None)]
    #[case("a\0b", None)]
    fn only_plain_words_name_a_helper(#[case] name: &str, #[case] expected: Option<&str>) {
        assert_eq!(program(name).as_deref(), expected);
    }

    #[test]
    fn password_is_read() {
        let script = r#"read key; printf '{"ServerURL": "%s", "Username": "%s", "Secret": "p"}' "$key" "$1-$key""#;

        assert_eq!(
            ask_script(script),
            Ok(Some(Credentials::Password {
                user: "get-a.io".into(),
                password: "p".into()
            }))
        );
    }

    #[test]
    fn token_is_read() {
        let script = r#"echo '{"Username": "<token>", "Secret": "t"}'"#;

        assert_eq!(
            ask_script(script),
            Ok(Some(Credentials::IdentityToken("t".into())))
        );
    }

    #[rstest]
    #[case::said("echo 'credentials not found in native keychain'; exit 1")]
    #[case::empty(r#"echo '{"Username": "u", "Secret": ""}'"#)]
    fn nothing_is_no_error(#[case] script: &str) {
        assert_eq!(ask_script(script), Ok(None));
    }

    #[rstest]
    #[case::fails("echo hunter2; exit 7", "exit status: 7) when asked for `a.io`")]
    #[case::complains(
        "echo hunter2; echo 'gpg: no\u{1b}[31m pinentry' >&2; exit 7",
        "when asked for `a.io`: gpg: no\\u{1b}[31m pinentry"
    )]
    #[case::no_json("echo hunter2", "is not JSON")]
    #[case::other_json(r#"echo '{"Secret": ["hunter2"]}'"#, "unexpected kind")]
    fn failure_is_told_without_the_output(#[case] script: &str, #[case] message: &str) {
        let error = ask_script(script).unwrap_err();

        assert!(error.contains(message), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
