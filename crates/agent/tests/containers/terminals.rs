// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Terminals, of first processes and of further ones.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use coracle_agent::container::stdio::HostStreams;
use coracle_agent_api::ErrorKind;
use serde_json::json;

use crate::bundle::Bundle;
use crate::exec::{Exec, on_a_terminal, process};
use crate::execs::{end, idle, idle_of};
use crate::machine::Machine;

pub const ALL: &[(&str, crate::Case)] = cases![
    first_process_has_a_terminal,
    console_is_the_terminal,
    terminal_has_the_size_of_the_spec_and_is_resized,
    terminal_controls_the_session,
    terminal_is_its_users,
    all_output_of_a_terminal_is_there_when_the_end_is_reported,
    end_of_input_leaves_a_terminal_open,
    closed_input_of_a_terminal_is_delivered_first,
    exec_has_a_terminal_of_its_own,
    exec_does_not_wait_for_what_keeps_its_terminal_open,
    terminal_that_is_flooded_in_the_background_ends,
    host_that_leaves_hangs_the_terminal_up,
    host_that_does_not_read_is_waited_for,
    resizing_what_is_no_terminal_is_refused,
    terminal_beside_stderr_is_refused,
    terminal_without_a_devpts_is_refused,
    multiplexer_that_is_another_file_is_refused,
    console_behind_a_link_of_the_image_is_refused,
];

fn terminal(machine: &Machine, script: &str) -> Bundle {
    Bundle::new(machine, script).with("/process/terminal", json!(true))
}

fn first_process_has_a_terminal(machine: &Machine) {
    let bundle = terminal(
        machine,
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all",
    );

    let outcome = bundle.run(machine).unwrap();

    assert_eq!(outcome.stdout, "/dev/pts/0\r\nall\r\n");
    assert_eq!(outcome.end.exit.status, 0);
}

fn console_is_the_terminal(machine: &Machine) {
    let bundle = terminal(machine, "echo hello > /dev/console; ls -l /dev/console");

    let stdout = bundle.run(machine).unwrap().stdout;

    assert!(stdout.starts_with("hello\r\ncrw"), "{stdout}");
    // 136 is the pseudo terminals' major number.
    assert!(stdout.contains("136,   0"), "{stdout}");
}

fn terminal_has_the_size_of_the_spec_and_is_resized(machine: &Machine) {
    let script = "stty size; read x; stty size; read x";
    let bundle = terminal(machine, "stty size; touch /ready; read x")
        .with("/process/consoleSize", json!({"height": 30, "width": 100}));
    let (bundle, running) = idle_of(bundle, machine);
    let mut process = on_a_terminal(script);
    process["consoleSize"] = json!({"height": 31, "width": 101});
    let mut exec = Exec::start(&running, "exec", &process).unwrap();

    exec.read_until("31 101\r\n");
    running.containers.resize(exec.name(), 123, 45).unwrap();
    exec.type_in("\n");
    exec.read_until("45 123\r\n");
    exec.type_in("\n");
    exec.finish();
    while !bundle.path("rootfs/ready").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }

    running.containers.signal(running.first(), 9, true).unwrap();
    assert_eq!(running.finish().stdout, "30 100\r\n");
}

fn terminal_controls_the_session(machine: &Machine) {
    let script =
        "trap 'echo interrupted; exit 3' INT; echo ready > /dev/tty; while :; do sleep 0.01; done";
    let (_bundle, running) = idle(machine);
    let mut exec = Exec::start(&running, "exec", &on_a_terminal(script)).unwrap();
    exec.read_until("ready");

    exec.type_in("\x03");

    let (status, stdout, _) = exec.finish();
    end(running);
    assert_eq!(
        (status, stdout.contains("interrupted")),
        (3, true),
        "{stdout}"
    );
}

fn terminal_is_its_users(machine: &Machine) {
    let bundle = terminal(machine, "ls -ln $(tty); echo again > $(tty)")
        .with("/process/user", json!({"uid": 1000, "gid": 1000}));

    let stdout = bundle.run(machine).unwrap().stdout;

    assert!(stdout.contains(" 1000 "), "{stdout}");
    assert!(stdout.ends_with("again\r\n"), "{stdout}");
}

fn all_output_of_a_terminal_is_there_when_the_end_is_reported(machine: &Machine) {
    let script = "stty -opost; dd if=/dev/zero bs=1000 count=1000 2>/dev/null; echo end";
    let bundle = terminal(machine, script);

    for _ in 0..5 {
        let stdout = bundle.run(machine).unwrap().stdout;

        assert_eq!(stdout.len(), 1_000_004);
        assert!(stdout.ends_with("\0end\n"));
    }
}

fn end_of_input_leaves_a_terminal_open(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let mut exec = Exec::start(
        &running,
        "exec",
        &on_a_terminal("echo ready; read x; echo end"),
    )
    .unwrap();
    exec.read_until("ready");
    exec.stdin.shutdown(Shutdown::Write).unwrap();
    exec.stdout
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();

    let nothing = exec
        .stdout
        .read(&mut [0; 100])
        .map_err(|error| error.kind());
    running.containers.signal(exec.name(), 1, false).unwrap();
    let status = exec.wait().exit.status;

    end(running);
    assert_eq!(nothing.unwrap_or(2), 2, "its line end at most");
    assert_eq!(status, 129);
}

fn closed_input_of_a_terminal_is_delivered_first(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "read x; echo got $x";
    let mut exec = Exec::create(&running, "exec", &on_a_terminal(script)).unwrap();
    exec.type_in("word\n");

    running.containers.close_stdin(exec.name()).unwrap();
    running.containers.start(exec.name()).unwrap();

    let (_, stdout, _) = exec.finish();
    end(running);
    assert!(stdout.contains("got word"), "{stdout}");
}

fn exec_has_a_terminal_of_its_own(machine: &Machine) {
    let (_bundle, running) = idle_of(terminal(machine, "sleep 1000"), machine);
    let mut process = on_a_terminal("tty; stty size; echo err >&2");
    process["consoleSize"] = json!({"height": 11, "width": 22});

    let (status, stdout, _) = Exec::start(&running, "exec", &process).unwrap().finish();

    end(running);
    assert_eq!(
        (status, stdout.as_str()),
        (0, "/dev/pts/1\r\n11 22\r\nerr\r\n")
    );
}

fn exec_does_not_wait_for_what_keeps_its_terminal_open(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "setsid sleep 1000 & echo done";
    let exec = Exec::start(&running, "exec", &on_a_terminal(script)).unwrap();
    let begun = Instant::now();

    let (status, stdout, _) = exec.finish();

    let taken = begun.elapsed();
    end(running);
    assert_eq!((status, stdout.as_str()), (0, "done\r\n"));
    assert!(taken < Duration::from_secs(60), "{taken:?}");
}

fn terminal_that_is_flooded_in_the_background_ends(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "setsid sh -c 'while :; do echo flood; done' & sleep 0.1; exit 5";
    let exec = Exec::start(&running, "exec", &on_a_terminal(script)).unwrap();
    let mut stdout = exec.stdout.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text.len())
    });

    let status = exec.wait().exit.status;
    let read = reader.join().unwrap().unwrap();

    end(running);
    assert_eq!(status, 5);
    assert!(read > 0);
}

fn host_that_leaves_hangs_the_terminal_up(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "while :; do echo flood; done";
    let exec = Exec::start(&running, "exec", &on_a_terminal(script)).unwrap();

    exec.stdout.shutdown(Shutdown::Both).unwrap();

    let status = exec.wait().exit.status;
    end(running);
    assert_eq!(status, 129);
}

fn host_that_does_not_read_is_waited_for(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "stty -opost; dd if=/dev/zero bs=1000 count=1000 2>/dev/null";
    let mut exec = Exec::start(&running, "exec", &on_a_terminal(script)).unwrap();
    exec.stdin.write_all(b"").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut stdout = exec.stdout.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text.len()
    });

    exec.wait();

    let read = reader.join().unwrap();
    end(running);
    assert_eq!(read, 1_000_000);
}

fn resizing_what_is_no_terminal_is_refused(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let exec = Exec::start(&running, "exec", &process("sleep 1000")).unwrap();

    let first = running.containers.resize(running.first(), 80, 25);
    let further = running.containers.resize(exec.name(), 80, 25);
    let large = running.containers.resize(exec.name(), 65536, 25);

    end(running);
    assert_eq!(first.unwrap_err().kind, ErrorKind::Terminal);
    assert_eq!(further.unwrap_err().kind, ErrorKind::Terminal);
    assert_eq!(large.unwrap_err().kind, ErrorKind::InvalidRequest);
}

fn terminal_beside_stderr_is_refused(machine: &Machine) {
    let bundle = terminal(machine, "true");
    let (_host, agent) = std::os::unix::net::UnixStream::pair().unwrap();
    let streams = HostStreams {
        stderr: Some(agent.into()),
        ..HostStreams::default()
    };

    let error = bundle.create_with(machine, streams).err().unwrap();

    assert_eq!(error.kind, ErrorKind::InvalidRequest);
}

fn terminal_without_a_devpts_is_refused(machine: &Machine) {
    let bundle = terminal(machine, "true");
    let mounts = json!([bundle.spec["mounts"][0]]);

    let error = bundle
        .with("/mounts", mounts)
        .create(machine)
        .err()
        .unwrap();

    assert_eq!(error.kind, ErrorKind::Terminal);
}

fn multiplexer_that_is_another_file_is_refused(machine: &Machine) {
    let bundle = terminal(machine, "true");
    let mounts = json!([bundle.spec["mounts"][0]]);
    fs::create_dir_all(bundle.path("rootfs/dev/pts")).unwrap();
    fs::write(bundle.path("rootfs/dev/pts/ptmx"), "").unwrap();

    let error = bundle
        .with("/mounts", mounts)
        .create(machine)
        .err()
        .unwrap();

    assert_eq!(error.kind, ErrorKind::Terminal);
    assert!(
        error.message.ends_with("/dev/pts/ptmx is another file"),
        "{error}"
    );
}

fn console_behind_a_link_of_the_image_is_refused(machine: &Machine) {
    let bundle = terminal(machine, "true");
    let mounts = json!([
        bundle.spec["mounts"][0],
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    ]);
    fs::create_dir_all(bundle.path("rootfs/dev")).unwrap();
    symlink("/bin/busybox", bundle.path("rootfs/dev/console")).unwrap();

    let error = bundle
        .with("/mounts", mounts)
        .create(machine)
        .err()
        .unwrap();

    assert_eq!(error.kind, ErrorKind::Terminal);
    assert!(error.message.contains("/dev/console"), "{error}");
}
