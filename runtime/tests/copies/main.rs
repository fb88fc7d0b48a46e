// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle cp` and the files of a container that has ended: the real program, on what a run leaves behind. What it
//! takes is root and overlayfs in memory; where one is missing, the tests are counted as ignored.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use coracle_oci::image::ImageConfig;
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::Overrides;
use coracle_oci::user::User;
use libtest_mimic::{Arguments, Trial};
use serde_json::json;
use tempfile::TempDir;

const TESTS: &[(&str, fn())] = &[
    ("both_layers_are_read", both_layers_are_read),
    (
        "what_was_removed_is_not_there",
        what_was_removed_is_not_there,
    ),
    (
        "what_is_written_is_the_containers",
        what_is_written_is_the_containers,
    ),
    (
        "volumes_are_where_the_container_sees_them",
        volumes_are_where_the_container_sees_them,
    ),
    (
        "volume_that_is_only_read_is_not_written",
        volume_that_is_only_read_is_not_written,
    ),
    (
        "what_the_guest_alone_has_is_refused",
        what_the_guest_alone_has_is_refused,
    ),
    (
        "what_would_come_where_the_guest_alone_has_something_is_left_out",
        what_would_come_where_the_guest_alone_has_something_is_left_out,
    ),
    (
        "file_in_the_place_of_what_the_guest_alone_has_is_left_out",
        file_in_the_place_of_what_the_guest_alone_has_is_left_out,
    ),
    (
        "link_to_what_the_guest_alone_has_is_left_out_of_an_archive",
        link_to_what_the_guest_alone_has_is_left_out_of_an_archive,
    ),
    (
        "whole_container_is_copied_without_what_its_guest_alone_has",
        whole_container_is_copied_without_what_its_guest_alone_has,
    ),
    (
        "volume_below_a_disk_is_in_reach",
        volume_below_a_disk_is_in_reach,
    ),
    ("archive_goes_out_and_in", archive_goes_out_and_in),
    (
        "nothing_that_can_be_copied_is_said",
        nothing_that_can_be_copied_is_said,
    ),
    ("unknown_container_is_said", unknown_container_is_said),
];

fn main() -> ExitCode {
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can_mount = rustix::process::geteuid().is_root() && file_systems.contains("overlay");
    if !can_mount {
        eprintln!("ignored without root and overlayfs");
    }
    let trials = TESTS
        .iter()
        .map(|&(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
            .with_ignored_flag(!can_mount)
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A host with a container that has ended. Its image has /etc/one and /etc/two; it wrote /etc/new and removed /etc/two. Its
/// guest had disks at /disk and in the place of the file /etc/null.
struct Host {
    // In memory: what tests run on may be an overlay itself, which cannot be written through another.
    directory: TempDir,
}

const CONTAINER: &str = "root/containers/0123456789ab";

impl Host {
    fn new() -> Self {
        let host = Self {
            directory: tempfile::tempdir_in("/dev/shm").unwrap(),
        };
        for directory in [
            "image/etc",
            "image/data",
            "image/readonly",
            "image/disk/below",
            "image/dev",
            "volume",
            "out",
        ] {
            fs::create_dir_all(host.path(directory)).unwrap();
        }
        fs::create_dir_all(host.path(CONTAINER).join("upper/etc")).unwrap();
        fs::write(host.path("image/etc/one"), "one").unwrap();
        fs::write(host.path("image/etc/two"), "two").unwrap();
        fs::write(host.path("image/etc/null"), "covered").unwrap();
        symlink("/data", host.path("image/link")).unwrap();
        symlink("/disk", host.path("image/todisk")).unwrap();
        symlink("disk/gone/way", host.path("image/way")).unwrap();
        fs::write(host.path("volume/file"), "volume").unwrap();
        let upper = host.path(CONTAINER).join("upper/etc");
        fs::write(upper.join("new"), "new").unwrap();
        let whiteout = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, upper.join("two"), whiteout, mode, 0).unwrap();
        let record = json!({
            "id": "0123456789ab",
            "name": "web",
            "image": "one",
            "tree": host.path("image"),
            "created": "2026-01-01T00:00:00Z",
            "status": {"is": "exited", "at": "2026-01-01T00:00:00Z", "status": 0},
            "remove": false,
            "stop_signal": 15,
            "plan": host.plan(),
        });
        fs::write(host.path(CONTAINER).join("record.json"), record.to_string()).unwrap();
        host
    }

    fn plan(&self) -> SandboxPlan {
        let volume = self.path("volume");
        let volume = |rest: &str| format!("{}:{rest}", volume.display()).parse().unwrap();
        let own = self.path(CONTAINER);
        SandboxPlan::new(Request {
            id: "0123456789ab",
            vm: VmShape {
                vcpus: 1,
                memory_mib: 256,
            },
            config: &ImageConfig::default(),
            overrides: &Overrides {
                command: vec!["true".into()],
                ..Overrides::default()
            },
            user: &User::default(),
            volumes: &[
                volume("/data"),
                volume("/readonly:ro"),
                volume("/disk/made/volume"),
                format!("{}:/disk/conf", self.path("volume/file").display())
                    .parse()
                    .unwrap(),
            ],
            disks: &["/nothing.img:/etc/null".parse().unwrap()],
            served_disks: &[("/no.sock:/disk".parse().unwrap(), "acpi-4096".to_owned())],
            places: Places {
                lower: &self.path("image"),
                upper: &own.join("upper"),
                work: &own.join("work"),
                share: Path::new("/nothing"),
                guest_share: Path::new("/run/share"),
            },
        })
        .unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command
            .arg("cp")
            .args(words)
            .current_dir(self.path("out"))
            .env("CORACLE_ROOT", self.path("root"))
            .env("CORACLE_STATE", self.path("state"))
            .env_remove("CORACLE_LOG")
            .stdin(Stdio::null());
        command
    }

    fn copy(&self, words: &[&str]) {
        succeeded(&self.command(words).output().unwrap());
    }

    /// Puts what is in `tree` at the container's root; gives what is said.
    fn put_in(&self, tree: &Path, as_archive: bool) -> String {
        if as_archive {
            return self.put_in_as_archive(tree, ".");
        }
        let tree = format!("{}/.", tree.display());
        told(self.command(&[&tree, "web:/"]))
    }

    /// The same of one path in it.
    fn put_in_as_archive(&self, tree: &Path, path: &str) -> String {
        let mut tar = Command::new("tar");
        // In an order, so that it is the second name of a file that is a link.
        tar.args(["-c", "--sort=name", "-C"]).arg(tree).arg(path);
        let mut tar = tar.stdout(Stdio::piped()).spawn().unwrap();
        let mut copy = self.command(&["-", "web:/"]);
        copy.stdin(tar.stdout.take().unwrap());
        let told = told(copy);
        assert!(tar.wait().unwrap().success());
        told
    }

    /// Why it fails.
    fn refused(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8(output.stderr).unwrap()
    }
}

fn succeeded(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// What a copy that succeeds says.
fn told(mut copy: Command) -> String {
    let output = copy.output().unwrap();
    succeeded(&output);
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn both_layers_are_read() {
    let host = Host::new();

    host.copy(&["web:/etc", "."]);

    assert_eq!(text(host.path("out/etc/one")), "one");
    assert_eq!(text(host.path("out/etc/new")), "new");
}

fn what_was_removed_is_not_there() {
    let host = Host::new();

    let error = host.refused(&["web:/etc/two", "."]);

    assert_eq!(error, "coracle: there is no /etc/two\n");
}

fn what_is_written_is_the_containers() {
    let host = Host::new();
    fs::write(host.path("out/one"), "written").unwrap();

    host.copy(&["one", "web:/etc/"]);

    let container = host.path(CONTAINER);
    assert_eq!(text(container.join("upper/etc/one")), "written");
    assert_eq!(text(host.path("image/etc/one")), "one");
    assert!(!container.join("work").exists());
    host.copy(&["web:/etc/one", "read"]);
    assert_eq!(text(host.path("out/read")), "written");
}

fn volumes_are_where_the_container_sees_them() {
    let host = Host::new();
    fs::write(host.path("out/more"), "more").unwrap();

    // By a link of the image, whose target has the volume.
    host.copy(&["web:/link/file", "."]);
    host.copy(&["more", "web:/link/"]);

    assert_eq!(text(host.path("out/file")), "volume");
    assert_eq!(text(host.path("volume/more")), "more");
}

fn volume_that_is_only_read_is_not_written() {
    let host = Host::new();
    fs::write(host.path("out/more"), "more").unwrap();

    host.copy(&["web:/readonly/file", "."]);
    let error = host.refused(&["more", "web:/readonly"]);

    assert!(error.contains("Read-only file system"), "{error}");
    assert!(!host.path("volume/more").exists());
}

fn what_the_guest_alone_has_is_refused() {
    let host = Host::new();
    fs::write(host.path("out/q"), "q").unwrap();

    for place in [
        "/disk",
        "/disk/",
        "/disk/q",
        "disk/below/q",
        "/dev/x",
        "/todisk/q",
        "/etc/../dev/.",
    ] {
        let into = host.refused(&["q", &format!("web:{place}")]);
        let out_of = host.refused(&[&format!("web:{place}"), "new"]);

        for error in [into, out_of] {
            assert!(
                error.contains(place) && error.contains("out of reach"),
                "{error}"
            );
        }
    }
    let archive = host.refused(&["-", "web:/disk"]);
    assert!(
        archive.contains("/disk is a disk, which the guest alone has"),
        "{archive}"
    );
    assert!(!host.path("out/new").exists());
    assert!(!host.path(CONTAINER).join("upper/disk").exists());
    // By its own name, too.
    fs::create_dir(host.path("out/disk")).unwrap();
    fs::write(host.path("out/null"), "q").unwrap();
    for (own, place) in [("disk", "web:/"), ("null", "web:/etc")] {
        let error = host.refused(&[own, place]);
        assert!(error.contains("out of reach"), "{error}");
    }
    // The link itself is none of it.
    host.copy(&["web:/todisk", "."]);
}

/// Whether it comes as a tree or as an archive.
fn what_would_come_where_the_guest_alone_has_something_is_left_out() {
    for as_archive in [false, true] {
        let host = Host::new();
        let tree = host.path("out/tree");
        for directory in ["disk/made/volume", "dev/pts", "etc/null"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        for file in [
            "disk/q",
            "disk/conf",
            "disk/made/q",
            "disk/made/volume/more",
            "etc/null/below",
            "dev/pts/q",
        ] {
            fs::write(tree.join(file), "more").unwrap();
        }
        fs::hard_link(tree.join("dev/pts/q"), tree.join("etc/same")).unwrap();

        let said = host.put_in(&tree, as_archive);

        for path in ["disk/q", "disk/made/q", "etc/null", "dev/pts"] {
            let line = format!("coracle: {path} is left out: the guest alone has its place\n");
            assert_eq!(said.matches(&line).count(), 1, "{path}: {said}");
        }
        assert!(
            !said.contains("below") && !said.contains("dev/pts/q is"),
            "{said}"
        );
        assert_eq!(text(host.path("volume/more")), "more");
        assert_eq!(text(host.path("volume/file")), "more");
        let upper = host.path(CONTAINER).join("upper");
        assert_eq!(upper.join("etc/same").exists(), !as_archive, "{said}");
        assert!(!upper.join("disk/q").exists());
    }
}

fn file_in_the_place_of_what_the_guest_alone_has_is_left_out() {
    for as_archive in [false, true] {
        let host = Host::new();
        fs::create_dir(host.path("out/tree")).unwrap();
        fs::write(host.path("out/tree/disk"), "a file").unwrap();

        let said = host.put_in(&host.path("out/tree"), as_archive);

        assert_eq!(
            said,
            "coracle: disk is left out: the guest alone has its place\n"
        );
    }
}

/// The names of an archive are looked up by way of links, and one may lead to what is not there.
fn link_to_what_the_guest_alone_has_is_left_out_of_an_archive() {
    let host = Host::new();
    fs::create_dir_all(host.path("out/tree/way")).unwrap();
    fs::write(host.path("out/tree/way/q"), "q").unwrap();

    let said = host.put_in_as_archive(&host.path("out/tree"), "way/q");
    let refused = host.refused(&["tree/way/q", "web:/way/further/q"]);

    assert_eq!(
        said,
        "coracle: way/q is left out: the guest alone has its place\n"
    );
    assert!(
        refused.contains("/way/further/q of container web is out of reach: /disk is a disk"),
        "{refused}"
    );
}

fn whole_container_is_copied_without_what_its_guest_alone_has() {
    let host = Host::new();
    fs::write(host.path("image/disk/hidden"), "hidden").unwrap();

    let said = told(host.command(&["web:/", "all"]));

    for line in [
        "what is in all/disk is left out: the guest alone has it",
        "all/etc/null is left out: the guest alone has it",
    ] {
        assert_eq!(said.matches(line).count(), 1, "{line}: {said}");
    }
    assert!(host.path("out/all/etc/one").exists());
    assert!(!host.path("out/all/disk/hidden").exists());
}

fn volume_below_a_disk_is_in_reach() {
    let host = Host::new();
    fs::write(host.path("out/more"), "more").unwrap();

    host.copy(&["web:/disk/made/volume/file", "."]);
    host.copy(&["more", "web:/disk/made/volume/"]);
    let beside = host.refused(&["more", "web:/disk/made/more"]);

    assert_eq!(text(host.path("out/file")), "volume");
    assert_eq!(text(host.path("volume/more")), "more");
    assert!(beside.contains("out of reach"), "{beside}");
}

fn archive_goes_out_and_in() {
    let host = Host::new();

    let archive = host.command(&["web:/etc", "-"]).output().unwrap();
    succeeded(&archive);
    let mut child = host
        .command(&["-", "web:/data"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&archive.stdout)
        .unwrap();

    assert!(child.wait().unwrap().success());
    assert_eq!(text(host.path("volume/etc/one")), "one");
    assert_eq!(text(host.path("volume/etc/new")), "new");
}

fn nothing_that_can_be_copied_is_said() {
    let host = Host::new();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, host.path("out/fifo"), kind, mode, 0).unwrap();

    let special = host.refused(&["fifo", "web:/etc"]);
    // Standard input is empty.
    let archive = host.refused(&["-", "web:/etc"]);

    assert_eq!(special, "coracle: fifo is a FIFO, which is not copied\n");
    assert_eq!(archive, "coracle: there is no archive on standard input\n");
}

fn unknown_container_is_said() {
    let host = Host::new();

    let error = host.refused(&["nobody:/etc", "."]);

    assert!(error.contains("there is no container 'nobody'"), "{error}");
}
