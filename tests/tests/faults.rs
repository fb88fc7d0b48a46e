// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever dies, the others notice, say so once, and leave nothing behind.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
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
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_dir(&partial).map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < deadline, "the run unpacks its image");
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
fn killed_janitor_is_not_missed_and_volumes_are_kept() {
    let host = Host::new();
    let volume = host.files().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "kept").unwrap();
    // The state is reached by a name that the kernel's list of mounts does not have.
    let state = host.files().join("state");
    fs::create_dir_all(state.with_file_name("../state")).unwrap();
    symlink("../state", &state).unwrap();
    let shared = format!("{}:/data", volume.display());
    let mut command = host.coracle(&[
        "run",
        "-v",
        &shared,
        &image("busybox"),
        "sh",
        "-c",
        "echo ready; read word; exit 3",
    ]);
    command.stdin(Stdio::piped()).env("CORACLE_STATE", &state);
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
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "kept");
}

#[test]
fn writable_layer_is_removed_however_deep_it_is() {
    let host = Host::new();
    let script = "mkdir -p $(yes d/ | head -n 300 | tr -d '\\n') && echo made";
    let coracle = host.coracle(&[]);
    // Fewer descriptors than levels.
    let mut command = Command::new("prlimit");
    command.arg("--nofile=200:4096").arg(coracle.get_program());
    command.args(["run", &image("busybox"), "sh", "-c", script]);
    command.envs(
        coracle
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());

    let run = host.start(command).finish().expect(0);

    assert_eq!((run.text().as_str(), run.stderr.as_str()), ("made", ""));
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
