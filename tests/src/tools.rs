// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of the host that tests use.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `program` to its end, for what it prints.
///
/// # Panics
///
/// Panics where it is missing or fails.
#[track_caller]
pub fn run(program: &str, words: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(words)
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be executed: {error}"));
    assert!(
        output.status.success(),
        "{program} {words:?}: {}",
        output.status
    );
    output.stdout
}

/// A hash of everything beneath `tree`: names, contents, owners, modes, times of writing, attributes.
#[must_use]
pub fn fingerprint(tree: &Path) -> String {
    let script = "cd \"$1\" && find . -mindepth 1 -print0 | sort --zero-terminated |
        tar --create --file=- --xattrs --pax-option=delete=atime,delete=ctime,exthdr.name=%f \\
            --no-recursion --null --files-from=- | sha256sum";
    let tree = tree.display().to_string();
    let hash = run("bash", &["-o", "pipefail", "-c", script, "bash", &tree]);
    String::from_utf8_lossy(&hash).into_owned()
}

/// Kills a process, which the test found in its own control group just now.
#[track_caller]
pub fn kill(process: i32) {
    // SAFETY: sends a signal, to a process of this very test: the caller's promise.
    let sent = unsafe { libc::kill(process, libc::SIGKILL) };
    assert_eq!(sent, 0, "process {process} can be killed");
}
