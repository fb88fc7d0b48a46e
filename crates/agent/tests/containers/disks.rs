// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks of the host, as file systems and as devices of containers.

use coracle_agent_api::ErrorKind;
use serde_json::{Value, json};

use crate::bundle::{Bundle, Outcome};
use crate::machine::{Disk, Disks, Machine};

pub const ALL: &[(&str, crate::Case)] = cases![
    file_system_of_a_disk_is_mounted,
    read_only_file_system_of_a_disk_cannot_be_written,
    device_of_a_mounted_disk_stays_out_of_reach,
    disk_is_given_as_a_device,
    disk_that_is_given_read_only_cannot_be_written,
    file_system_that_the_disk_does_not_hold_is_refused,
    each_file_system_that_is_tried_says_why_not,
    missing_disk_is_named,
];

fn disks(machine: &Machine) -> &Disks {
    machine.disks.as_ref().unwrap()
}

fn run(machine: &Machine, script: &str, kind: &str, options: Value) -> Outcome {
    run_with(&disks(machine).writable, machine, script, kind, options)
}

fn run_with(disk: &Disk, machine: &Machine, script: &str, kind: &str, options: Value) -> Outcome {
    let source = &disk.link;
    Bundle::new(machine, script)
        .with_mount(json!({"destination": "/data", "type": kind, "source": source, "options": options}))
        .with("/process/capabilities", json!({"bounding": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"]}))
        .run(machine)
        .unwrap()
}

fn file_system_of_a_disk_is_mounted(machine: &Machine) {
    let first = run(machine, "echo hello > /data/kept", "auto", json!([]));
    let second = run(
        machine,
        "cat /data/kept; ls /data",
        "ext4",
        json!(["nodev"]),
    );

    assert_eq!(first.stderr, "");
    assert_eq!(second.stdout, "hello\nkept\nlost+found\n");
}

fn read_only_file_system_of_a_disk_cannot_be_written(machine: &Machine) {
    let disk = &disks(machine).read_only;

    let outcome = run_with(disk, machine, "touch /data/x", "ext4", json!(["ro"]));

    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
}

fn device_of_a_mounted_disk_stays_out_of_reach(machine: &Machine) {
    let number = rustix::fs::stat(&disks(machine).writable.link)
        .unwrap()
        .st_rdev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let script =
        format!("mknod /dev/disk b {major} {minor} && dd if=/dev/disk of=/dev/null count=1");

    let outcome = run(machine, &script, "ext4", json!([]));

    assert!(
        outcome.stderr.contains("Operation not permitted"),
        "{outcome:?}"
    );
}

fn disk_is_given_as_a_device(machine: &Machine) {
    // Where an ext4 file system has nothing, and where it says that it is one.
    let script =
        "echo begin | dd of=/data conv=notrunc 2>/dev/null && dd if=/data bs=6 count=1 2>/dev/null";

    let outcome = run(machine, script, "bind", json!(["bind"]));

    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("begin\n", "")
    );
}

fn disk_that_is_given_read_only_cannot_be_written(machine: &Machine) {
    let script = "dd if=/data of=/dev/null count=1 2>/dev/null && echo read; echo x > /data";

    let outcome = run(machine, script, "bind", json!(["bind", "ro"]));

    assert_eq!(outcome.stdout, "read\n");
    assert!(
        outcome.stderr.contains("Operation not permitted"),
        "{outcome:?}"
    );
}

fn file_system_that_the_disk_does_not_hold_is_refused(machine: &Machine) {
    let source = &disks(machine).writable.link;
    let bundle = Bundle::new(machine, "true")
        .with_mount(json!({"destination": "/data", "type": "squashfs", "source": source}));

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    let start = "cannot mount squashfs of /dev/disk/by-id/virtio-data on /data: ";
    assert!(error.message.starts_with(start), "{error}");
}

fn each_file_system_that_is_tried_says_why_not(machine: &Machine) {
    let source = &disks(machine).writable.link;
    // An option that no file system has.
    let bundle = Bundle::new(machine, "true").with_mount(
        json!({"destination": "/data", "type": "auto", "source": source, "options": ["no_such_option"]}),
    );

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    for kind in ["ext4: ", "; xfs: "] {
        assert!(error.message.contains(kind), "{error}");
    }
}

fn missing_disk_is_named(machine: &Machine) {
    let mount = |kind: &str| json!({"destination": "/data", "type": kind, "source": "/dev/disk/by-id/virtio-none"});

    let messages = ["ext4", "bind"].map(|kind| {
        let bundle = Bundle::new(machine, "true").with_mount(mount(kind));
        let error = bundle.run(machine).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Mount);
        error.message
    });

    assert_eq!(
        messages,
        [
            "cannot mount ext4 of /dev/disk/by-id/virtio-none on /data: no disk has this name, or several have it",
            "cannot use /dev/disk/by-id/virtio-none: no disk has this name, or several have it",
        ]
    );
}
