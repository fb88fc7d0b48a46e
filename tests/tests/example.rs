// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The example of a VMM of one's own, built from the crates' packages alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use coracle_tests::{guests, path_from_environment};

/// Seconds within which the guest boots, does as it is told and ends: many, for one that is emulated.
const DEADLINE: &str = "100";

#[test]
fn example_boots_to_a_shell_that_does_what_is_typed_and_ends_with_it() {
    let shown = shell_of_the_example("echo $((6 * 7)) is the answer\nexit\n");

    assert!(shown.contains("42 is the answer"), "{shown}");
}

#[test]
#[ignore = "takes the small kernel: make test-kernel"]
fn example_boots_the_small_kernel() {
    let shown = shell_of_the_example("uname -r\nexit\n");

    assert!(shown.contains("-coracle\r\n"), "{shown}");
}

/// What a guest of the example shows whose shell is told `words`. It has the kernel that guests start from here.
fn shell_of_the_example(words: &str) -> String {
    let mut vmm = Command::new("timeout")
        .arg(DEADLINE)
        .arg(path_from_environment("CORACLE_EXAMPLE"))
        .args(guests::ours())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the example can be executed");
    let mut typed = vmm.stdin.take().expect("its standard input is a pipe");
    let mut shown = BufReader::new(vmm.stdout.take().expect("its standard output is a pipe"));

    // Linux drops what is typed before the console's driver is ready.
    let mut greeting = String::new();
    while !greeting.contains("turns the machine off") {
        let count = shown
            .read_line(&mut greeting)
            .expect("the guest writes text");
        assert_ne!(count, 0, "it ended early: {greeting}");
    }
    typed
        .write_all(words.as_bytes())
        .expect("a pipe takes a line");
    // The pipe stays open: it is the shell's end that ends the machine.
    let mut rest = Vec::new();
    shown.read_to_end(&mut rest).expect("a pipe can be read");
    let status = vmm.wait().expect("it was started here");
    drop(typed);

    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(status.success(), "{status}: {rest}");
    rest
}
