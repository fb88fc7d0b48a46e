// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages where standard error takes nothing.

use std::fs::File;
use std::process::{Command, Stdio};

use rstest::rstest;

/// The program, whose standard error is on a full disk, and which says all that there is to say.
fn on_a_full_disk(words: &[&str]) -> Option<i32> {
    let directory = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_coracle"))
        .args(words)
        .env("CORACLE_ROOT", directory.path().join("root"))
        .env("CORACLE_STATE", directory.path().join("state"))
        .env("CORACLE_LOG", "trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap()
        .code()
}

#[rstest]
#[case::failure(&["inspect", "nosuch"])]
#[case::one_of_several_failures(&["kill", "nosuch", "nosuch"])]
#[case::messages_of_a_crate(&["pull", "127.0.0.1:1/nosuch"])]
fn messages_that_cannot_be_told_end_nothing(#[case] words: &[&str]) {
    assert_eq!(on_a_full_disk(words), Some(125));
}
