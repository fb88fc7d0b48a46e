// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands that need no virtual machine: the real program, on a host of each test's own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::pipe;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

const CORACLE: &str = env!("CARGO_BIN_EXE_coracle");
const ID: &str = "0123456789ab";

/// A host with a container that has ended.
fn host() -> TempDir {
    let host = tempfile::tempdir().unwrap();
    let own = host.path().join("root/containers").join(ID);
    let record = json!({
        "id": ID,
        "name": "web",
        "image": "busybox",
        "tree": "/nonexistent",
        "created": "2026-01-02T03:04:05Z",
        "status": {"is": "exited", "at": "2026-01-02T03:04:05Z", "status": 0},
        "remove": false,
        "stop_signal": 15,
    });
    fs::create_dir_all(&own).unwrap();
    fs::write(host.path().join("config.toml"), "").unwrap();
    fs::write(own.join("record.json"), record.to_string()).unwrap();
    host
}

fn coracle(host: &TempDir, words: &[&str], stdout: impl Into<Stdio>) -> Output {
    command(host, CORACLE)
        .args(words)
        .stdout(stdout)
        .output()
        .unwrap()
}

fn command(host: &TempDir, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("CORACLE_ROOT", host.path().join("root"))
        .env("CORACLE_STATE", host.path().join("state"))
        .env("CORACLE_CONFIG", host.path().join("config.toml"));
    command
}

#[rstest]
#[case::containers(&["ps", "-a"])]
#[case::ids(&["ps", "-aq"])]
#[case::containers_as_json(&["ps", "-a", "--json"])]
#[case::inspection(&["inspect", "web"])]
#[case::done(&["stop", "web"])]
#[case::images(&["images"])]
#[case::images_as_json(&["images", "--json"])]
#[case::usage(&["stats", "--no-stream"])]
#[case::check(&["check"])]
#[case::check_as_json(&["check", "--json"])]
fn output_that_is_not_taken(#[case] words: &[&str]) {
    let host = host();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();

    let to_nobody = coracle(&host, words, writer);
    let to_nothing = coracle(&host, words, Stdio::null());
    let to_a_full_disk = coracle(&host, words, full);

    assert_eq!(to_nobody.status, to_nothing.status);
    assert_eq!(String::from_utf8_lossy(&to_nobody.stderr), "");
    assert_eq!(to_a_full_disk.status.code(), Some(125));
    assert_eq!(
        String::from_utf8_lossy(&to_a_full_disk.stderr),
        "coracle: cannot write to standard output: No space left on device (os error 28)\n"
    );
}

#[test]
fn container_whose_record_cannot_be_read_is_listed_and_removed() {
    let host = host();
    let own = host.path().join("root/containers").join(ID);
    fs::write(own.join("record.json"), "{").unwrap();

    let listed = coracle(&host, &["ps", "-a"], Stdio::piped());
    let copied = coracle(&host, &["cp", "0123456789ab:/etc", "-"], Stdio::piped());
    let removed = coracle(&host, &["rm", ID], Stdio::piped());

    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains(ID) && listed.contains("damaged: "),
        "{listed}"
    );
    let said = String::from_utf8(copied.stderr).unwrap();
    assert!(said.contains("it is not known where the files"), "{said}");
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    assert!(!own.exists());
}

#[test]
fn one_that_is_not_there_hides_none_of_the_others() {
    let host = host();

    let inspected = coracle(&host, &["inspect", "nobody", "web"], Stdio::piped());

    assert_eq!(inspected.status.code(), Some(125));
    let found: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(found[0]["name"], "web");
    let said = String::from_utf8(inspected.stderr).unwrap();
    assert!(said.contains("there is no container 'nobody'"), "{said}");
}

#[test]
fn container_that_has_ended_uses_nothing() {
    let host = host();

    let used = coracle(
        &host,
        &["stats", "--no-stream", "nobody", "web"],
        Stdio::piped(),
    );

    assert_eq!(used.status.code(), Some(125));
    assert_eq!(String::from_utf8_lossy(&used.stdout), "");
    let said = String::from_utf8(used.stderr).unwrap();
    assert!(said.contains("there is no container 'nobody'"), "{said}");
    assert!(said.contains("container web is not running"), "{said}");
}

/// What a user without rights is told, who has the program.
fn as_ordinary_user(host: &TempDir, words: &str) -> Output {
    let program = host.path().join("coracle");
    // By another process: what a thread beside this one forks would have the copy open to write, and so it could not run.
    let copied = Command::new("cp")
        .args([CORACLE.as_ref(), program.as_path()])
        .status();
    assert!(copied.unwrap().success());
    let mut command = command(host, &program);
    command.arg(words).uid(65534).gid(65534).output().unwrap()
}

#[test]
fn ordinary_user_is_not_told_that_there_are_no_containers() {
    let host = host();
    for (path, mode) in [("", 0o755), ("config.toml", 0o644), ("root", 0o700)] {
        fs::set_permissions(host.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    let listed = as_ordinary_user(&host, "ps");

    assert_eq!(listed.status.code(), Some(125));
    let said = String::from_utf8(listed.stderr).unwrap();
    assert!(said.contains("(run this as root)"), "{said}");
}

#[test]
fn ordinary_user_is_told_whose_the_images_are() {
    let host = host();
    fs::create_dir(host.path().join("root/images")).unwrap();
    for path in ["", "root"] {
        fs::set_permissions(host.path().join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    let listed = as_ordinary_user(&host, "images");

    assert_eq!(listed.status.code(), Some(125));
    let said = String::from_utf8(listed.stderr).unwrap();
    assert!(said.contains("belongs to root; run this as root"), "{said}");
}

#[test]
fn dump_goes_to_no_stream() {
    let host = host();

    let dumped = coracle(&host, &["dump", "web", "-"], Stdio::piped());

    let said = String::from_utf8(dumped.stderr).unwrap();
    assert!(said.contains("not to standard output"), "{said}");
}

#[test]
fn check_goes_by_the_configuration_file() {
    let host = host();
    fs::write(
        host.path().join("config.toml"),
        "[network]\nipv4 = \"none\"\n",
    )
    .unwrap();

    let checked = coracle(&host, &["check"], Stdio::piped());

    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("MISSING  configuration"), "{said}");
    assert!(said.contains("'none' is not a subnet"), "{said}");
    assert_eq!(checked.status.code(), Some(1));
}
