// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files go into containers and come out of them, while they run and after.

use std::fs;
use std::process::{Command, Stdio};

use coracle_tests::{Host, Image};

use super::{FOREVER, start};

#[test]
fn files_go_in_and_come_out_while_the_container_runs() {
    let host = Host::with_shared_images();
    start(
        &host,
        "c",
        Image::BUSYBOX,
        &format!(
            "mkdir -p /srv/a; echo guest >/srv/a/file; ln -s /etc/passwd /srv/a/link; {FOREVER}"
        ),
    );
    host.run(&[
        "exec",
        "c",
        "sh",
        "-c",
        "until [ -h /srv/a/link ]; do :; done",
    ])
    .expect(0);
    let (into, out) = (host.file("in", "from the host\n"), host.folder("out"));

    let into = into.display().to_string();
    host.run(&["cp", &into, "c:/srv/a/new"]).expect(0);
    let seen = host.run(&["exec", "c", "cat", "/srv/a/new"]).expect(0);
    host.run(&["cp", "c:/srv/a", &out.display().to_string()])
        .expect(0);

    assert_eq!(seen.text(), "from the host");
    let read = |name: &str| fs::read_to_string(out.join("a").join(name)).unwrap();
    assert_eq!(read("file"), "guest\n");
    assert_eq!(read("new"), "from the host\n");
    let link = fs::read_link(out.join("a/link")).unwrap();
    assert_eq!(
        link.to_str(),
        Some("/etc/passwd"),
        "links come out as links"
    );
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn what_only_the_guest_has_is_refused_while_the_container_runs() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let into = host.file("in", "new\n").display().to_string();

    for place in ["c:/dev/x", "c:/dev/shm/x", "c:/proc/x", "c:/sys"] {
        host.run(&["cp", &into, place])
            .expect(125)
            .says("is out of reach");
    }
    host.run(&["cp", "c:/proc/version", "-"])
        .expect(125)
        .says("try: coracle exec c cat /proc/version");

    host.run(&["exec", "c", "cat", "/proc/version"]).expect(0);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn volume_is_reached_through_its_container_and_a_read_only_one_is_not_written() {
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    fs::write(volume.join("file"), "of the volume\n").unwrap();
    let into = host.file("in", "new\n").display().to_string();
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .volume(&volume, "/data")
        .volume(&volume, "/ro:ro")
        .shell(FOREVER)
        .expect(0);
    let out = host.files().join("out").display().to_string();

    host.run(&["cp", "c:/data/file", &out]).expect(0);
    host.run(&["cp", &into, "c:/data/new"]).expect(0);
    host.run(&["cp", &into, "c:/ro/refused"])
        .expect(125)
        .says("Read-only");

    assert_eq!(fs::read_to_string(&out).unwrap(), "of the volume\n");
    assert!(volume.join("new").exists() && !volume.join("refused").exists());
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn files_of_a_container_that_has_ended_are_still_there() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .kept()
        .option("--name", "c")
        .shell("echo kept >/srv-file")
        .expect(0);
    let out = host.files().join("out").display().to_string();

    host.run(&["cp", "c:/srv-file", &out]).expect(0);

    assert_eq!(fs::read_to_string(&out).unwrap(), "kept\n");
    host.run(&["rm", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn archive_goes_through_standard_streams() {
    let host = Host::with_shared_images();
    start(&host, "c", Image::BUSYBOX, FOREVER);
    let tree = host.folder("tree");
    fs::write(tree.join("inside"), "packed\n").unwrap();
    let archive = Command::new("tar")
        .args(["-C", &tree.display().to_string(), "-c", "inside"])
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let command = host.coracle(&["cp", "-", "c:/tmp"]);
    host.start_with_input(command, archive.stdout)
        .finish()
        .expect(0);
    let seen = host.run(&["exec", "c", "cat", "/tmp/inside"]).expect(0);
    let back = host.run(&["cp", "c:/tmp/inside", "-"]).expect(0);

    assert_eq!(seen.text(), "packed");
    assert!(String::from_utf8_lossy(&back.stdout).contains("packed\n"));
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn image_that_a_container_was_made_from_is_not_removed() {
    let host = Host::new();
    let layout = Image::BUSYBOX.to_string();
    host.run(&["load", &layout, "box"]).expect(0);
    host.container("box")
        .kept()
        .option("--name", "c")
        .command(["true"])
        .expect(0);

    host.run(&["rmi", "box"]).expect(125).says("c");

    host.run(&["rm", "c"]).expect(0);
    host.run(&["rmi", "box"]).expect(0);
    let left = host.run(&["images"]).expect(0).text();
    assert_eq!(left.lines().count(), 1, "{left}");
    host.assert_clean();
}
