// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever dies, the others notice, say so once, and leave nothing behind.

use std::fs::{self, File};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use coracle_guest::cpio::Archive;
use coracle_tests::{Host, guests, image};
use rstest::rstest;

#[rstest]
#[case::vmm("role:vmm")]
#[case::file_system("role:fs")]
fn killed_role_ends_the_run_with_a_reason(#[case] role: &str) {
    let host = Host::new();
    let mut run = host.start(host.coracle(&[
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "echo ready; while :; do ls /bin >/dev/null; done",
    ]));
    assert_eq!(run.line(), "ready");

    kill(host.process_of(role));

    let run = run.finish().expect(125);
    assert!(
        run.stderr.contains(role.trim_start_matches("role:")),
        "{}",
        run.stderr
    );
    host.assert_clean();
}

#[rstest]
#[case::at_once(0)]
#[case::while_it_starts(300)]
#[case::while_the_guest_boots(1500)]
fn killed_run_leaves_nothing(#[case] milliseconds: u64) {
    let host = Host::new();
    let run = host.start(host.coracle(&["run", &image("busybox"), "sleep", "1000"]));
    thread::sleep(Duration::from_millis(milliseconds));

    run.signal(libc::SIGKILL);

    run.finish().expect(137);
    host.assert_clean();
}

#[rstest]
#[case::killed(libc::SIGKILL, 137)]
#[case::interrupted(libc::SIGINT, 130)]
fn run_that_ends_while_it_unpacks_leaves_nothing(#[case] signal: i32, #[case] status: i32) {
    let host = Host::new();
    let run = host.start(host.coracle(&["run", &image("debian"), "true"]));
    let partial = host.images().join("tmp");
    while fs::read_dir(&partial).map_or(0, Iterator::count) == 0 {
        thread::sleep(Duration::from_millis(5));
    }

    run.signal(signal);

    run.finish().expect(status);
    host.assert_clean();
    assert!(
        !host.images().join("sha256").exists(),
        "no image is there, since none was whole"
    );
}

#[test]
fn killed_janitor_is_not_missed() {
    let host = Host::new();
    let words = [
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "echo ready; read word; exit 3",
    ];
    let mut command = host.coracle(&words);
    command.stdin(Stdio::piped());
    let mut run = host.start(command);
    assert_eq!(run.line(), "ready");
    let processes = host.processes();
    // It is the fork of the run that is not the run: it has the run's command line.
    let ours =
        |(process, words): &&(i32, String)| *process != run.id() && words.contains("\0run\0");
    let (janitor, _) = processes.iter().find(ours).expect("there is a janitor");

    kill(*janitor);
    drop(run.stdin());

    run.finish().expect(3);
    host.assert_clean();
}

#[test]
fn run_killed_while_its_container_runs_leaves_nothing() {
    let host = Host::new();
    let mut run = host.start(host.coracle(&[
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "echo ready; sleep 1000",
    ]));
    assert_eq!(run.line(), "ready");

    run.signal(libc::SIGKILL);

    run.finish().expect(137);
    host.assert_clean();
}

#[test]
fn guest_that_never_answers_is_given_up() {
    let host = Host::new();
    let kernel = host.files().join("endless");
    fs::write(&kernel, guests::endless()).unwrap();
    let started = Instant::now();

    let run = host
        .run(&[
            "run",
            "--boot-timeout",
            "2",
            "--kernel",
            kernel.to_str().unwrap(),
            &image("busybox"),
            "true",
        ])
        .expect(125);

    assert!(run.stderr.contains("within 2 s"), "{}", run.stderr);
    assert!(started.elapsed() < Duration::from_secs(20));
    host.assert_clean();
}

#[test]
fn guest_that_resets_is_reported() {
    let host = Host::new();
    let kernel = host.files().join("resetting");
    fs::write(&kernel, guests::resetting()).unwrap();

    let run = host
        .run(&[
            "run",
            "--kernel",
            kernel.to_str().unwrap(),
            &image("busybox"),
            "true",
        ])
        .expect(125);

    assert!(run.stderr.contains("reset"), "{}", run.stderr);
    host.assert_clean();
}

#[test]
fn panic_of_the_guests_kernel_is_shown() {
    let host = Host::new();
    // A file system without /init: the kernel finds nothing to run.
    let initrd = host.files().join("empty.cpio");
    Archive::new(File::create(&initrd).unwrap())
        .finish()
        .unwrap();

    let run = host
        .run(&[
            "run",
            "--initrd",
            initrd.to_str().unwrap(),
            &image("busybox"),
            "true",
        ])
        .expect(125);

    assert!(run.stderr.contains("panic"), "{}", run.stderr);
    assert!(
        run.stderr.contains("guest| "),
        "the console's end is shown: {}",
        run.stderr
    );
    host.assert_clean();
}

#[test]
fn interrupt_while_the_guest_boots_ends_the_run() {
    let host = Host::new();
    let run = host.start(host.coracle(&["run", &image("busybox"), "sleep", "1000"]));
    host.process_of("role:vmm");

    run.signal(libc::SIGINT);

    run.finish().expect(130);
    host.assert_clean();
}

fn kill(process: i32) {
    // SAFETY: the process was found in the test's own control group just now.
    let sent = unsafe { libc::kill(process, libc::SIGKILL) };
    assert_eq!(sent, 0);
}
