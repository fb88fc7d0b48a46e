// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How containers are ended and removed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use coracle_tests::{Host, Image};
use rstest::rstest;

use super::{FOREVER, start};

/// Starts a container that handles signals, once it does: before it has said so, they are lost on the first process.
fn start_with_traps(host: &Host, traps: &str) {
    let script = format!("{traps}; touch /tmp/ready; while :; do sleep 0.1; done");
    start(host, "c", Image::BUSYBOX, &script);
    let wait = "until [ -e /tmp/ready ]; do sleep 0.1; done";
    host.run(&["exec", "c", "sh", "-c", wait]).expect(0);
}

#[test]
fn stopped_container_may_end_in_its_own_way() {
    let host = Host::with_shared_images();
    start_with_traps(&host, "trap 'echo bye; exit 3' TERM");

    let stopped = host.run(&["stop", "c"]).expect(0);

    assert_eq!(stopped.text(), "c");
    host.await_status("c", "exited (3)");
    assert_eq!(host.run(&["logs", "c"]).expect(0).text(), "bye");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn container_that_does_not_want_to_stop_is_killed() {
    let host = Host::with_shared_images();
    start(
        &host,
        "c",
        Image::BUSYBOX,
        "trap '' TERM; while :; do sleep 0.1; done",
    );
    let began = Instant::now();

    host.run(&["stop", "--time", "1", "c"]).expect(0);

    assert!(began.elapsed() >= Duration::from_secs(1));
    host.await_status("c", "exited (137)");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[rstest]
#[case::stopped(&["stop", "c"])]
#[case::killed(&["kill", "c"])]
#[case::removed(&["rm", "--force", "c"])]
fn container_that_is_starting_can_be_ended(#[case] words: &[&str]) {
    let host = Host::with_shared_images();
    let run = host
        .container(Image::BUSYBOX)
        .option("--name", "c")
        // The guest waits for a debugger that does not come.
        .option("--gdb", host.files().join("gdb"))
        .flag("--gdb-wait")
        .boot_timeout(300)
        .command(["true"])
        .start();
    host.process_of("role:vmm");
    let asked = host.run(&["kill", "-s", "USR1", "c"]);

    host.run(words).expect(0);

    run.finish().expect(128 + libc::SIGTERM);
    asked
        .expect(125)
        .says_once(&["container c is only starting", "coracle stop c"]);
    host.assert_clean();
}

#[rstest]
#[case::killed(&["kill", "c"], "exited (137)")]
#[case::signal_by_name(&["kill", "-s", "SIGUSR1", "c"], "exited (138)")]
#[case::signal_by_number(&["kill", "-s", "12", "c"], "exited (140)")]
fn signal_ends_a_container(#[case] words: &[&str], #[case] status: &str) {
    let host = Host::with_shared_images();
    // The first process of a container is not ended by signals that it does not handle.
    start_with_traps(&host, "trap 'exit 138' USR1; trap 'exit 140' USR2");

    host.run(words).expect(0);

    host.await_status("c", status);
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn container_whose_agent_hangs_is_ended_with_its_machine() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let vmm = host.process_of("role:vmm");
    // SAFETY: the process is one of this host's.
    assert_eq!(unsafe { libc::kill(vmm, libc::SIGSTOP) }, 0);

    host.run(&["kill", "c"]).expect(0);

    host.await_status("c", "its machine was ended");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn several_containers_are_stopped_at_once() {
    let host = Host::with_shared_images();
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    for name in ["a", "b", "c"] {
        start(&host, name, Image::BUSYBOX, stubborn);
    }
    let began = Instant::now();

    let stopped = host.run(&["stop", "--time", "3", "a", "b", "c"]).expect(0);

    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(stopped.text(), "a\nb\nc");
    host.run(&["rm", "a", "b", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn container_whose_output_nobody_reads_has_ended_and_can_be_removed() {
    let host = Host::with_shared_images();
    let run = host
        .container(Image::BUSYBOX)
        .kept()
        .option("--name", "c")
        .shell("yes | head -c 200000; exit 3")
        .start();

    host.await_status("c", "exited (3)");
    host.run(&["rm", "--force", "c"]).expect(0);

    run.finish().expect(3);
    host.assert_clean();
}

#[test]
fn guest_that_hangs_is_left_by_the_third_signal() {
    let host = Host::with_shared_images();
    let mut run = host
        .container(Image::BUSYBOX)
        .shell("echo ready; sleep 1000")
        .start();
    assert_eq!(run.line(), "ready");
    let vmm = host.process_of("role:vmm");
    // SAFETY: the process is one of this host's.
    assert_eq!(unsafe { libc::kill(vmm, libc::SIGSTOP) }, 0);

    for _ in 0..3 {
        run.signal(libc::SIGINT);
        thread::sleep(Duration::from_millis(2500));
    }

    run.finish()
        .expect(137)
        .says_once(&["the next signal ends its machine"]);
    host.assert_clean();
}

/// Each is given up by whoever asked: all they leave must not keep others from ending the machine.
#[test]
fn container_whose_agent_was_asked_too_much_can_be_ended() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let vmm = host.process_of("role:vmm");
    // SAFETY: the process is one of this host's.
    assert_eq!(unsafe { libc::kill(vmm, libc::SIGSTOP) }, 0);
    let control = host.control();
    let ask = |request: &str| {
        let mut connection = UnixStream::connect(&control).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        connection
    };

    for _ in 0..600 {
        ask("{\"request\":\"usage\"}\n");
    }
    let _held: Vec<_> = (0..300)
        .map(|_| ask("{\"request\":\"console\"}\n"))
        .collect();
    host.run(&["kill", "c"]).expect(0);

    host.await_status("c", "its machine was ended");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn what_is_not_understood_is_told_with_the_version() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let mut connection = UnixStream::connect(host.control()).unwrap();

    connection.write_all(b"{\"request\":\"future\"}\n").unwrap();

    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("of coracle, which does not know"),
        "{answer}"
    );
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn running_container_is_removed_only_by_force() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);

    host.run(&["rm", "c"])
        .expect(125)
        .says_once(&["container c is running", "--force"]);
    host.run(&["rm", "--force", "c"]).expect(0);

    assert_eq!(host.run(&["ps", "-aq"]).expect(0).text(), "");
    host.assert_clean();
}

#[test]
fn container_that_goes_with_its_end_goes() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .flag("--detach")
        .command(["sleep", "1"])
        .expect(0);

    host.assert_clean();
}

#[test]
fn failure_before_the_start_is_told_at_once_even_in_the_background() {
    let host = Host::with_shared_images();

    let missing = host
        .container(Image::BUSYBOX)
        .detached()
        .command(["nosuch"]);
    let no_image = host.container("./nosuch").detached().command(["true"]);

    missing.expect(127).says_once(&["nosuch"]);
    no_image.expect(125).says_once(&["nosuch"]);
    host.assert_clean();
}
