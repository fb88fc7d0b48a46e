// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands that are executed in a running container.

use std::time::{Duration, Instant};

use coracle_tests::{Finished, Host, Image};
use rstest::rstest;

use super::{FOREVER, start};

/// Executes `words` in the container, with options first.
fn exec(host: &Host, words: &[&str]) -> Finished {
    host.run(&[&["exec"], words].concat())
}

#[rstest]
fn command_runs_beside_the_first_in_the_same_container(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    start(&host, "c", image, "echo mine >/tmp/file; exec sleep 1000");

    exec(
        &host,
        &[
            "c",
            "sh",
            "-c",
            "until cat /tmp/file 2>/dev/null; do :; done; echo err >&2; exit 7",
        ],
    )
    .expect(7)
    .says("err");
    let first = exec(&host, &["c", "cat", "/proc/1/cmdline"]).expect(0);
    let name = exec(&host, &["c", "hostname"]).expect(0);

    assert_eq!(first.text().replace('\0', " ").trim(), "sleep 1000");
    assert_eq!(name.text().len(), 12);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn command_has_the_user_directory_and_environment_that_it_is_given() {
    let host = Host::with_shared_images();
    host.container(Image::DEBIAN)
        .detached()
        .option("--name", "c")
        .env("KEPT=1")
        .shell(FOREVER)
        .expect(0);
    let script = "id -u; id -g; pwd; echo $KEPT$NEW; grep CapEff /proc/self/status";

    let given = [
        "-u", "nobody", "-w", "/usr", "-e", "NEW=2", "c", "sh", "-c", script,
    ];
    let run = exec(&host, &given).expect(0);

    assert_eq!(
        run.text(),
        "65534\n65534\n/usr\n12\nCapEff:\t0000000000000000"
    );
    host.run(&["rm", "-f", "c"]).expect(0);
}

#[test]
fn input_arrives_and_ends() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let input = vec![7; 300_000];

    let command = host.coracle(&["exec", "-i", "c", "cat"]);
    let run = host
        .start_with_input(command, input.clone())
        .finish()
        .expect(0);

    assert!(run.stdout == input, "{} bytes came back", run.stdout.len());
    let silent = exec(&host, &["c", "cat"]).expect(0);
    assert_eq!(silent.stdout, b"", "without -i there is no input");
    host.run(&["rm", "-f", "c"]).expect(0);
}

#[test]
fn command_that_cannot_be_run_tells_it_by_its_status() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);

    exec(&host, &["c", "nosuch"])
        .expect(127)
        .says_once(&["nosuch", "not found"]);
    exec(&host, &["c", "/etc"]).expect(126).says_once(&["/etc"]);
    exec(&host, &["-w", "/nosuch", "c", "true"])
        .expect(125)
        .says("/nosuch");
    exec(&host, &["-u", "nosuch", "c", "true"])
        .expect(125)
        .says_once(&["nosuch"]);
    exec(&host, &["-e", "=x", "c", "true"])
        .expect(125)
        .says_once(&["NAME=VALUE"]);

    exec(&host, &["c", "true"]).expect(0);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn signals_go_through_to_the_command() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run = host.start(host.coracle(&["exec", "c", "sh", "-c", script]));
    assert_eq!(run.line(), "ready");

    run.signal(libc::SIGTERM);

    let run = run.finish().expect(9);
    assert_eq!(run.text(), "got it");
    host.run(&["rm", "-f", "c"]).expect(0);
}

#[rstest]
#[case::silent("sleep 1000 & echo started; exit 3")]
#[case::talking("(while echo again; do sleep 1; done) & echo started; exit 3")]
fn command_is_not_held_up_by_what_it_leaves_in_the_background(#[case] script: &str) {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let began = Instant::now();

    let run = exec(&host, &["c", "sh", "-c", script]).expect(3);

    assert!(run.text().contains("started"), "{}", run.text());
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn several_commands_run_at_once() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);

    let runs: Vec<_> = (0..6)
        .map(|number| {
            let script = format!("sleep 1; echo {number}; exit {number}");
            host.start(host.coracle(&["exec", "c", "sh", "-c", &script]))
        })
        .collect();

    for (number, run) in (0..).zip(runs) {
        assert_eq!(run.finish().expect(number).text(), number.to_string());
    }
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn command_ends_with_its_container() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let mut run = host.start(host.coracle(&["exec", "c", "sh", "-c", "echo ready; sleep 1000"]));
    assert_eq!(run.line(), "ready");

    host.run(&["kill", "c"]).expect(0);

    run.finish().expect(137);
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn command_goes_on_when_nobody_listens_any_more() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let script = "echo ready; sleep 2; echo done >/tmp/done";
    let mut run = host.start(host.coracle(&["exec", "c", "sh", "-c", script]));
    assert_eq!(run.line(), "ready");

    run.signal(libc::SIGKILL);

    run.finish().expect(137);
    exec(
        &host,
        &[
            "c",
            "sh",
            "-c",
            "until [ -e /tmp/done ]; do sleep 0.1; done",
        ],
    )
    .expect(0);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}
