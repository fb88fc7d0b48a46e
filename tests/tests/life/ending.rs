// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How containers are ended and removed.

use std::time::{Duration, Instant};

use coracle_tests::{Host, Image};
use rstest::rstest;

use super::{FOREVER, start};

#[test]
fn stopped_container_may_end_in_its_own_way() {
    let host = Host::with_shared_images();
    start(
        &host,
        "c",
        Image::BUSYBOX,
        "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done",
    );

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
#[case::killed(&["kill", "c"], "exited (137)")]
#[case::signal_by_name(&["kill", "-s", "SIGUSR1", "c"], "exited (138)")]
#[case::signal_by_number(&["kill", "-s", "12", "c"], "exited (140)")]
fn signal_ends_a_container(#[case] words: &[&str], #[case] status: &str) {
    let host = Host::with_shared_images();
    // The first process of a container is not ended by signals that it does not handle.
    let script = "trap 'exit 138' USR1; trap 'exit 140' USR2; while :; do sleep 0.1; done";
    start(&host, "c", Image::BUSYBOX, script);

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
