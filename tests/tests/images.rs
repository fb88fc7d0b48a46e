// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that other tools made: unpacked once, never changed, shared by runs.

use std::fs;
use std::path::PathBuf;

use coracle_oci::tree_hash::tree_hash;
use coracle_tests::{Host, image};

/// The one unpacked image of `host`.
fn unpacked(host: &Host) -> PathBuf {
    let images: Vec<_> = fs::read_dir(host.images().join("sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(images.len(), 1, "{images:?}");
    images[0].join("rootfs")
}

#[test]
fn unpacked_image_is_used_again_and_never_changes() {
    let host = Host::new();
    let script = "rm /bin/ls; echo changed > /etc/passwd; mkdir /new; chmod 777 /bin; echo done";
    host.run(&["run", &image("busybox"), "true"]).expect(0);
    let before = tree_hash(unpacked(&host)).unwrap();

    let run = host
        .run(&["run", &image("busybox"), "sh", "-c", script])
        .expect(0);

    assert_eq!(run.text(), "done");
    assert_eq!(tree_hash(unpacked(&host)).unwrap(), before);
    host.run(&["run", &image("busybox"), "ls", "/new"])
        .expect(1);
    host.assert_clean();
}

#[test]
fn archive_and_directory_of_one_image_are_unpacked_once() {
    let host = Host::new();

    let archive = host
        .run(&["run", &image("busybox.tar"), "echo", "archive"])
        .expect(0);
    let directory = host
        .run(&["run", &image("busybox"), "echo", "directory"])
        .expect(0);

    assert_eq!(
        (archive.text().as_str(), directory.text().as_str()),
        ("archive", "directory")
    );
    unpacked(&host);
}

#[test]
fn two_runs_of_one_image_at_once_do_not_see_each_other() {
    let host = Host::new();
    let script = "echo $$ > /mine; echo ready; read word; ls /mine /theirs 2>/dev/null";
    let start = || {
        let mut command = host.coracle(&["run", &image("busybox"), "sh", "-c", script]);
        command.stdin(std::process::Stdio::piped());
        host.start(command)
    };
    let (mut first, mut second) = (start(), start());

    assert_eq!(
        (first.line(), second.line()),
        ("ready".into(), "ready".into())
    );
    drop(first.stdin());
    drop(second.stdin());

    assert_eq!(first.finish().text(), "/mine");
    assert_eq!(second.finish().text(), "/mine");
    host.assert_clean();
}

#[test]
fn debian_image_runs_its_own_tools() {
    let host = Host::new();
    let script = ". /etc/os-release; echo $ID; dpkg-query -W -f '${Package}\\n' bash; perl -e 'print 6*7, \"\\n\"'; \
                  useradd -m someone && su someone -c 'id -un'";

    let run = host
        .run(&[
            "run",
            "--memory",
            "512",
            &image("debian"),
            "bash",
            "-c",
            script,
        ])
        .expect(0);

    assert_eq!(run.text(), "debian\nbash\n42\nsomeone");
    host.assert_clean();
}
