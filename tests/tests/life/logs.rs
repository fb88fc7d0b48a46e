// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container has put out is found again.

use coracle_tests::{Host, Image};

use super::start;

#[test]
fn both_streams_are_kept_and_told_apart() {
    let host = Host::with_shared_images();
    start(
        &host,
        "c",
        Image::BUSYBOX,
        "echo out; sleep 0.5; echo err >&2; printf half",
    );
    host.await_status("c", "exited (0)");

    let logs = host.run(&["logs", "c"]).expect(0);
    let timed = host
        .run(&["logs", "--timestamps", "--tail", "1", "c"])
        .expect(0);

    assert_eq!(logs.text(), "out\nhalf");
    assert_eq!(logs.stderr, "err\n");
    let (time, rest) = timed
        .text()
        .split_once(' ')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert_eq!(rest, "half");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn container_that_keeps_no_log_is_told_of() {
    let host = Host::with_shared_images();
    let mut run = host
        .container(Image::BUSYBOX)
        .option("--name", "c")
        .shell("echo ready; sleep 1000")
        .start();
    assert_eq!(run.line(), "ready");

    host.run(&["logs", "c"])
        .expect(125)
        .says_once(&["container c keeps no log"]);

    host.run(&["kill", "c"]).expect(0);
    run.finish().expect(137);
    host.assert_clean();
}

#[test]
fn log_is_followed_to_the_containers_end() {
    let host = Host::with_shared_images();
    start(
        &host,
        "c",
        Image::BUSYBOX,
        "for n in 1 2 3 4 5; do echo $n; sleep 0.4; done",
    );

    let logs = host.run(&["logs", "--follow", "c"]).expect(0);

    assert_eq!(logs.text(), "1\n2\n3\n4\n5");
    host.run(&["rm", "c"]).expect(0);
}

#[test]
fn what_went_to_the_user_is_logged_too_unless_the_container_goes() {
    let host = Host::with_shared_images();
    let run = host
        .container(Image::BUSYBOX)
        .kept()
        .option("--name", "c")
        .command(["echo", "hello"])
        .expect(0);

    let logs = host.run(&["logs", "c"]).expect(0);

    assert_eq!((run.text(), logs.text()), ("hello".into(), "hello".into()));
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn endless_output_does_not_fill_the_disk() {
    let host = Host::with_shared_images();
    let config = host.file("config.toml", "[log]\nlimit = 1\n");
    host.container(Image::BUSYBOX)
        .variable("CORACLE_CONFIG", &config)
        .detached()
        .option("--name", "c")
        .shell("line=$(printf %0800d 0); i=0; while [ $i -lt 1600 ]; do echo $i $line; i=$((i+1)); done; echo last")
        .expect(0);
    host.await_status("c", "exited (0)");

    let sizes: u64 = std::fs::read_dir(host.containers())
        .unwrap()
        .flatten()
        .flat_map(|container| ["log", "log.1"].map(|name| container.path().join(name)))
        .filter_map(|log| std::fs::metadata(log).ok())
        .map(|log| log.len())
        .sum();

    assert!(sizes > 100_000 && sizes <= 1 << 20, "{sizes} bytes");
    assert!(
        host.run(&["logs", "c"])
            .expect(0)
            .text()
            .ends_with("\nlast")
    );
    host.run(&["rm", "c"]).expect(0);
}
