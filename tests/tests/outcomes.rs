// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a run ends, and what is known of that, where something on the host stands in its way.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use coracle_tests::{Host, Image};
use rstest::rstest;

/// A file system of its own, of 64 MiB.
struct Disk(PathBuf);

impl Disk {
    fn new(point: PathBuf) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m,mode=0755", "disk"])
            .arg(&point)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(point)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until `path` is there.
fn await_file(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not made", path.display());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn status_is_told_and_recorded_though_the_container_has_filled_the_disk() {
    let host = Host::new();
    let disk = Disk::new(host.folder("disk"));
    let root = text(&disk.0);

    let run = host
        .container(Image::BUSYBOX)
        .kept()
        .option("--root", root)
        .option("--name", "c")
        .shell("dd if=/dev/zero of=/f bs=1M; exit 7")
        .expect(7);

    let list = host.run(&["--root", root, "ps", "-a"]).expect(0).text();
    assert!(list.contains("exited (7)"), "{list}{}", run.stderr);
    host.run(&["--root", root, "rm", "c"]).expect(0);
    assert_eq!(fs::read_dir(disk.0.join("containers")).unwrap().count(), 0);
    drop(disk);
    host.assert_clean();
}

#[test]
fn output_that_cannot_be_written_is_told_without_the_guest() {
    let host = Host::with_shared_images();
    let busybox = Image::BUSYBOX.to_string();
    let words = ["run", "--rm", "--network=none", &busybox, "echo", "x"];
    let mut command = host.coracle(&words);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());

    let run = host.start(command).finish().expect(125);

    run.says_once(&["stdout", "No space left on device"]);
    host.assert_clean();
}

#[test]
fn signal_that_is_ignored_is_not_the_containers() {
    let host = Host::with_shared_images();
    let mut run = host
        .container(Image::BUSYBOX)
        .under(["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"])
        .interactive()
        .shell("echo up; read x; exit 5")
        .start();
    assert_eq!(run.line(), "up");

    run.signal(libc::SIGHUP);
    thread::sleep(Duration::from_secs(1));
    writeln!(run.stdin(), "on").unwrap();

    run.finish().expect(5);
    host.assert_clean();
}

#[test]
fn signal_ends_a_run_that_waits_for_a_back_end() {
    let host = Host::with_shared_images();
    let socket = host.files().join("back-end");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&socket).unwrap();
    let run = host
        .container(Image::BUSYBOX)
        .option("--vhost-user-blk", format!("{}:/disk", socket.display()))
        .command(["true"])
        .start();
    // Where the machine's files are, there is its next step.
    thread::sleep(Duration::from_secs(3));

    let asked = Instant::now();
    run.signal(libc::SIGINT);

    run.finish().expect(130);
    assert!(asked.elapsed() < Duration::from_secs(5));
    host.assert_clean();
}

/// Has a network `mine` made by a CNI plugin `scripted`; to be added it runs `script`. Gives the
/// configuration file.
fn cni_network(host: &Host, script: &str) -> PathBuf {
    let (configurations, plugins) = (host.folder("net.d"), host.folder("plugins"));
    let plugin = plugins.join("scripted");
    let script = format!("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n{script}\n");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, Permissions::from_mode(0o755)).unwrap();
    fs::write(
        configurations.join("mine.conflist"),
        r#"{"cniVersion": "0.4.0", "name": "mine", "plugins": [{"type": "scripted"}]}"#,
    )
    .unwrap();
    host.file(
        "config.toml",
        format!(
            "[network]\ncni_configurations = [{configurations:?}]\ncni_plugins = [{plugins:?}]\n"
        ),
    )
}

#[rstest]
#[case::complains(
    r#"echo '{"cniVersion": "0.4.0", "code": 7, "msg": "no room"}'; exit 1"#,
    "failed to ADD: no room (code 7)"
)]
#[case::hangs("sleep 50 & wait", "did not finish ADD within 2s and was killed")]
fn network_that_its_plugin_does_not_make_is_told(#[case] script: &str, #[case] says: &str) {
    let host = Host::with_shared_images();
    let config = cni_network(&host, script);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}cni_deadline = 2\n")).unwrap();

    let asked = Instant::now();
    let run = host
        .container(Image::BUSYBOX)
        .variable("CORACLE_CONFIG", &config)
        .network("mine")
        .command(["true"])
        .expect(125);

    let plugin = r#"CNI plugin "scripted" of network "mine""#;
    run.says_once(&["coracle: ", plugin, says]);
    assert!(asked.elapsed() < Duration::from_secs(20));
    host.assert_clean();
    let remembered = fs::read_dir(host.containers().with_file_name("network/machines"));
    assert_eq!(remembered.map_or(0, Iterator::count), 0);
}

#[test]
fn signal_ends_a_run_that_waits_for_its_network() {
    let host = Host::with_shared_images();
    let begun = host.files().join("begun");
    let config = cni_network(&host, &format!(": > {}\nexec sleep 50", begun.display()));
    let run = host
        .container(Image::BUSYBOX)
        .variable("CORACLE_CONFIG", &config)
        .network("mine")
        .command(["true"])
        .start();
    await_file(&begun);

    let asked = Instant::now();
    run.signal(libc::SIGTERM);

    run.finish().expect(143);
    assert!(asked.elapsed() < Duration::from_secs(5));
    host.assert_clean();
}

#[test]
fn debugger_may_come_later_than_a_guest_may_start() {
    let host = Host::with_shared_images();
    let socket = host.files().join("gdb");
    let run = host
        .container(Image::BUSYBOX)
        .option("--gdb", &socket)
        .flag("--gdb-wait")
        .boot_timeout(2)
        .command(["echo", "started"])
        .start();
    await_file(&socket);
    thread::sleep(Duration::from_secs(4));

    let gdb = Command::new("gdb")
        .args(["-batch", "-ex", &format!("target remote {}", text(&socket))])
        .args(["-ex", "detach"])
        .output()
        .unwrap();

    assert!(gdb.status.success(), "{gdb:?}");
    assert_eq!(run.finish().expect(0).text(), "started");
    assert!(!socket.exists());
    host.assert_clean();
}

#[test]
fn background_that_is_killed_while_it_starts_is_told_of() {
    let host = Host::with_shared_images();
    let socket = host.files().join("gdb");
    let run = host
        .container(Image::BUSYBOX)
        .detached()
        .option("--gdb", &socket)
        .flag("--gdb-wait")
        .command(["true"])
        .start();
    await_file(&socket);
    let parent = format!("PPid:\t{}\n", run.id());
    let child = host.processes().into_iter().find(|(process, _)| {
        fs::read_to_string(format!("/proc/{process}/status"))
            .is_ok_and(|text| text.contains(&parent))
    });

    // SAFETY: the process was just seen to be one of this test's.
    unsafe { libc::kill(child.unwrap().0, libc::SIGKILL) };

    run.finish()
        .expect(125)
        .says_once(&["was killed (signal 9)"]);
    host.assert_clean();
}

#[test]
fn processes_of_the_machine_are_in_no_session_of_the_callers() {
    let host = Host::with_shared_images();
    let mut run = host
        .container(Image::BUSYBOX)
        .interactive()
        .shell("echo up; read x")
        .start();
    assert_eq!(run.line(), "up");
    let roles = ["role:vmm", "role:fs"].map(|role| host.process_of(role));

    // SAFETY: the call only asks.
    let sessions = roles.map(|role| unsafe { libc::getsid(role) });

    drop(run.stdin());
    run.finish();
    assert_eq!(sessions, roles, "each leads one of its own");
    host.assert_clean();
}
