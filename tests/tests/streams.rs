// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard streams arrive whole and in order; signals go through.

use std::io::Write;
use std::process::Stdio;

use coracle_tests::{Host, image};
use rstest::rstest;
use sha2::{Digest, Sha256};

/// Bytes that do not repeat in a way that could hide a loss.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect()
}

#[rstest]
#[case::nothing(0)]
#[case::one_byte(1)]
#[case::many(3 << 20)]
fn standard_input_comes_back_whole_through_cat(#[case] length: usize) {
    let host = Host::new();
    let input = noise(length);
    let mut command = host.coracle(&["run", &image("busybox"), "cat"]);
    command.stdin(Stdio::piped());

    let run = host
        .start(command)
        .finish_with_input(input.clone())
        .expect(0);

    assert_eq!(run.stdout.len(), input.len());
    assert_eq!(Sha256::digest(&run.stdout), Sha256::digest(&input));
    host.assert_clean();
}

#[test]
fn standard_error_is_a_stream_of_its_own() {
    let host = Host::new();

    let run = host
        .run(&[
            "run",
            &image("busybox"),
            "sh",
            "-c",
            "echo out; echo err >&2; echo out2",
        ])
        .expect(0);

    assert_eq!(run.text(), "out\nout2");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn output_written_just_before_the_end_is_not_lost() {
    let host = Host::new();

    let run = host
        .run(&[
            "run",
            &image("busybox"),
            "sh",
            "-c",
            "head -c 5000000 /dev/zero; exit 7",
        ])
        .expect(7);

    assert_eq!(run.stdout.len(), 5_000_000);
}

#[test]
fn container_that_reads_nothing_ends_while_input_is_left() {
    let host = Host::new();
    let mut command = host.coracle(&["run", &image("busybox"), "true"]);
    command.stdin(Stdio::piped());

    let run = host.start(command).finish_with_input(noise(4 << 20));

    run.expect(0);
    host.assert_clean();
}

#[test]
fn output_appears_while_the_container_runs() {
    let host = Host::new();
    let mut command = host.coracle(&[
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "echo ready; read word; echo got $word",
    ]);
    command.stdin(Stdio::piped());
    let mut run = host.start(command);

    assert_eq!(run.line(), "ready");
    run.stdin().write_all(b"it\n").unwrap();
    assert_eq!(run.line(), "got it");

    run.finish().expect(0);
}

#[rstest]
#[case::interrupt(libc::SIGINT, "INT")]
#[case::terminate(libc::SIGTERM, "TERM")]
fn signals_go_through(#[case] signal: i32, #[case] name: &str) {
    let host = Host::new();
    let script =
        format!("trap 'echo caught; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
    let mut run = host.start(host.coracle(&["run", &image("busybox"), "sh", "-c", &script]));
    assert_eq!(run.line(), "ready");

    run.signal(signal);

    let run = run.finish().expect(9);
    assert_eq!(run.text(), "caught");
    host.assert_clean();
}

#[test]
fn reader_that_goes_away_ends_the_writer() {
    let host = Host::new();
    let mut run = host.start(host.coracle(&[
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "yes; echo status $? >&2",
    ]));
    assert_eq!(run.line(), "y");

    let run = run.close_output().finish();

    assert!(run.stderr.contains("status"), "{}", run.stderr);
    host.assert_clean();
}
