// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard streams arrive whole and in order; signals go through.

use std::io::Write;

use coracle_tests::{Host, Image};
use rstest::rstest;

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
fn standard_input_comes_back_whole_through_cat(
    #[case] length: usize,
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    let input = noise(length);

    let run = host
        .container(image)
        .input(input.clone())
        .command(["cat"])
        .finish();

    assert_eq!(
        (run.status, run.stdout.len()),
        (0, length),
        "{}",
        run.stderr
    );
    assert!(run.stdout == input, "the bytes are the same");
    host.assert_clean();
}

#[rstest]
fn standard_error_is_a_stream_of_its_own(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .shell("echo out; echo err >&2; echo out2")
        .expect(0);

    assert_eq!(run.text(), "out\nout2");
    assert_eq!(run.stderr, "err\n");
}

#[rstest]
fn output_written_just_before_the_end_is_not_lost(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .shell("head -c 5000000 /dev/zero; exit 7")
        .expect(7);

    assert_eq!(run.stdout.len(), 5_000_000);
}

#[rstest]
fn container_that_reads_nothing_ends_while_input_is_left(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();

    host.container(image)
        .input(noise(4 << 20))
        .command(["true"])
        .expect(0);

    host.assert_clean();
}

#[rstest]
fn output_appears_while_the_container_runs(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let mut run = host
        .container(image)
        .interactive()
        .shell("echo ready; read word; echo got $word")
        .start();

    assert_eq!(run.line(), "ready");
    run.stdin().write_all(b"it\n").unwrap();
    assert_eq!(run.line(), "got it");

    run.finish().expect(0);
}

#[rstest]
#[case::interrupt(libc::SIGINT, "INT")]
#[case::terminate(libc::SIGTERM, "TERM")]
fn signals_go_through(
    #[case] signal: i32,
    #[case] name: &str,
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    let script =
        format!("trap 'echo caught; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
    let mut run = host.container(image).shell(&script).start();
    assert_eq!(run.line(), "ready");

    run.signal(signal);

    let run = run.finish().expect(9);
    assert_eq!(run.text(), "caught");
    host.assert_clean();
}

#[rstest]
fn reader_that_goes_away_ends_the_writer(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let mut run = host
        .container(image)
        .shell("yes; echo status $? >&2")
        .start();
    assert_eq!(run.line(), "y");

    let run = run.close_output().finish();

    run.says("status");
    host.assert_clean();
}
