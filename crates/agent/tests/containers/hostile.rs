// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images and specs that are out to reach what is not theirs. Each case is of a kind that got out of another runtime.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use coracle_agent::container::ProcessId;
use coracle_agent::container::stdio::HostStreams;
use coracle_agent_api::ErrorKind;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use serde_json::json;

use crate::bundle::Bundle;
use crate::machine::Machine;

pub const ALL: &[(&str, crate::Case)] = cases![
    no_descriptor_leaks,
    working_directory_that_is_a_descriptor_is_refused,
    working_directory_outside_of_the_root_is_refused,
    command_behind_a_link_of_procfs_is_refused,
    agents_program_is_out_of_reach,
    mount_point_behind_a_hostile_link_is_made_inside,
    file_behind_a_hostile_link_is_mounted_upon_inside,
    mount_point_behind_a_link_of_procfs_is_refused,
    proc_that_the_image_made_a_link_is_refused,
    volume_on_top_of_proc_is_refused,
    mount_that_a_link_leads_into_proc_is_refused,
    forged_proc_is_not_written_to,
    masked_path_behind_a_hostile_link_stays_inside,
    read_only_path_behind_a_hostile_link_stays_inside,
    hidden_path_behind_a_link_of_procfs_is_refused,
    masks_are_not_made_of_the_images_null,
    mask_cannot_be_changed,
    null_of_the_guest_is_not_given_away,
    null_of_the_guest_cannot_be_changed,
    streams_that_are_a_denied_null_do_no_harm,
];

/// A link up and out of the root file system, to the directory of the volumes.
const OUT: &str = "../../../../../volumes";

fn is_empty(directory: &std::path::Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

fn no_descriptor_leaks(machine: &Machine) {
    // Of the agent's, open to all that it executes.
    let _careless = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
    let bundle = Bundle::new(machine, "exec ls /proc/self/fd");

    let outcome = bundle.run(machine).unwrap();

    // The last is the directory that `ls` reads.
    assert_eq!(outcome.stdout, "0\n1\n2\n3\n");
}

fn working_directory_that_is_a_descriptor_is_refused(machine: &Machine) {
    let _careless = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();

    let kinds: Vec<_> = (0..32)
        .map(|descriptor| {
            let cwd = format!("/proc/self/fd/{descriptor}");
            let bundle = Bundle::new(machine, "true").with("/process/cwd", json!(cwd));
            bundle.run(machine).map_err(|error| error.kind).err()
        })
        .collect();

    assert_eq!(kinds, [Some(ErrorKind::WorkingDirectory); 32]);
}

fn working_directory_outside_of_the_root_is_refused(machine: &Machine) {
    let cwd = format!("/guest/{}/root/etc", std::process::id());
    let bundle = Bundle::new(machine, "pwd; ls")
        .with_mount(json!({"destination": "/guest", "type": "bind", "source": "/proc"}))
        .with("/process/cwd", json!(cwd));

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::WorkingDirectory);
    assert_eq!(
        error.message,
        format!("the working directory {cwd} is outside of the container")
    );
}

fn command_behind_a_link_of_procfs_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "").with("/process/args", json!(["/entry", "--list"]));
    symlink("/proc/self/exe", bundle.path("rootfs/entry")).unwrap();

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::CommandNotExecutable);
    assert!(
        error.message.starts_with("cannot execute `/entry`: "),
        "{error}"
    );
}

fn agents_program_is_out_of_reach(machine: &Machine) {
    let bundle = Bundle::new(machine, "true");
    let running = bundle.create(machine).unwrap();

    let program = rustix::fs::statvfs(format!("/proc/{}/exe", running.pid)).unwrap();

    running.containers.delete(running.first()).unwrap();
    assert!(program.f_flag.contains(StatVfsMountFlags::RDONLY));
}

fn mount_point_behind_a_hostile_link_is_made_inside(machine: &Machine) {
    let bundle = Bundle::new(machine, "touch /data/x/file; ls /volumes/0/x")
        .with_mount(json!({"destination": "/data/x", "type": "tmpfs", "source": "tmpfs"}));
    symlink("../../../../volumes/0", bundle.path("rootfs/data")).unwrap();

    let outcome = bundle.run(machine).unwrap();

    assert_eq!(outcome.stdout, "file\n");
    assert!(bundle.path("rootfs/volumes/0/x").is_dir());
    assert!(
        fs::read_dir(bundle.path("volumes/0"))
            .unwrap()
            .next()
            .is_none()
    );
}

fn file_behind_a_hostile_link_is_mounted_upon_inside(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat /volumes/hosts").with_mount(
        json!({"destination": "/etc/hosts", "type": "bind", "source": "volumes/names", "options": ["bind"]}),
    );
    symlink(OUT, bundle.path("rootfs/etc")).unwrap();
    fs::write(bundle.path("volumes/names"), "127.0.0.1 localhost\n").unwrap();

    let outcome = bundle.run(machine).unwrap();

    assert_eq!(outcome.stdout, "127.0.0.1 localhost\n");
    assert!(!bundle.path("volumes/hosts").exists());
}

fn mount_point_behind_a_link_of_procfs_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "true")
        .with_mount(json!({"destination": "/data/x", "type": "tmpfs", "source": "tmpfs"}));
    symlink("/proc/self/root/bin", bundle.path("rootfs/data")).unwrap();

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    assert!(
        error
            .message
            .starts_with("cannot mount tmpfs on /data/x: make the mount point: "),
        "{error}"
    );
}

fn proc_that_the_image_made_a_link_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "true");
    fs::create_dir(bundle.path("rootfs/elsewhere")).unwrap();
    symlink("elsewhere", bundle.path("rootfs/proc")).unwrap();

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    assert!(
        error.message.starts_with("cannot mount proc on /proc: "),
        "{error}"
    );
}

fn volume_on_top_of_proc_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "true").with_mount(
        json!({"destination": "/proc", "type": "bind", "source": "volumes/0", "options": ["bind"]}),
    );

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    assert!(error.message.ends_with("it lies in procfs"), "{error}");
}

fn mount_that_a_link_leads_into_proc_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "true").with_mount(
        json!({"destination": "/etc/x", "type": "bind", "source": "volumes/0", "options": ["bind"]}),
    );
    symlink("/proc/self", bundle.path("rootfs/etc")).unwrap();
    let bundle = bundle.with("/mounts/6/destination", json!("/etc/attr"));

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    assert!(error.message.ends_with("it lies in procfs"), "{error}");
}

fn forged_proc_is_not_written_to(machine: &Machine) {
    let script = "cat /real/sys/kernel/msgmax /real/self/oom_score_adj";
    let bundle = Bundle::new(machine, script)
        .with("/mounts/0/destination", json!("/real"))
        .with("/linux/sysctl", json!({"kernel.msgmax": "4242"}))
        .with("/process/oomScoreAdj", json!(500));
    for file in ["sys/kernel/msgmax", "self/oom_score_adj"] {
        let forged = bundle.path("rootfs/proc").join(file);
        fs::create_dir_all(forged.parent().unwrap()).unwrap();
        fs::write(forged, "forged").unwrap();
    }

    let outcome = bundle.run(machine).unwrap();

    assert_eq!(outcome.stdout, "4242\n500\n");
    for file in ["sys/kernel/msgmax", "self/oom_score_adj"] {
        let forged = bundle.path("rootfs/proc").join(file);
        assert_eq!(fs::read_to_string(forged).unwrap(), "forged");
    }
}

fn masked_path_behind_a_hostile_link_stays_inside(machine: &Machine) {
    let bundle = Bundle::new(
        machine,
        "cat /volumes/file; ls /volumes/directory; cat /shown/file",
    )
    .with_mount(json!({"destination": "/shown", "type": "bind", "source": "volumes"}))
    .with(
        "/linux/maskedPaths",
        json!(["/link/file", "/link/directory"]),
    );
    symlink(OUT, bundle.path("rootfs/link")).unwrap();
    for volumes in ["volumes", "rootfs/volumes"] {
        fs::create_dir_all(bundle.path(volumes).join("directory/x")).unwrap();
        fs::write(bundle.path(volumes).join("file"), volumes).unwrap();
    }

    let outcome = bundle.run(machine).unwrap();

    // What is hidden is the image's own.
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("volumes", "")
    );
}

fn read_only_path_behind_a_hostile_link_stays_inside(machine: &Machine) {
    let bundle = Bundle::new(machine, "echo x > /shown/file; echo x > /volumes/file")
        .with_mount(json!({"destination": "/shown", "type": "bind", "source": "volumes"}))
        .with("/linux/readonlyPaths", json!(["/link"]));
    symlink(OUT, bundle.path("rootfs/link")).unwrap();
    fs::create_dir(bundle.path("rootfs/volumes")).unwrap();

    let outcome = bundle.run(machine).unwrap();

    assert!(
        outcome
            .stderr
            .contains("/volumes/file: Read-only file system"),
        "{outcome:?}"
    );
    assert_eq!(
        fs::read_to_string(bundle.path("volumes/file")).unwrap(),
        "x\n"
    );
    assert!(is_empty(&bundle.path("rootfs/volumes")));
}

fn hidden_path_behind_a_link_of_procfs_is_refused(machine: &Machine) {
    let bundle =
        Bundle::new(machine, "true").with("/linux/maskedPaths", json!(["/link/bin/busybox"]));
    symlink("/proc/self/root", bundle.path("rootfs/link")).unwrap();

    let error = bundle.run(machine).unwrap_err();

    assert_eq!(error.kind, ErrorKind::Mount);
    assert!(
        error.message.starts_with("cannot mask /link/bin/busybox: "),
        "{error}"
    );
}

fn masks_are_not_made_of_the_images_null(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat /proc/version")
        .with("/linux/maskedPaths", json!(["/proc/version"]));
    // Without a file system of its own, `/dev` is the image's.
    let mounts = json!([bundle.spec["mounts"][0]]);
    let bundle = bundle.with("/mounts", mounts);
    fs::create_dir(bundle.path("rootfs/dev")).unwrap();
    fs::write(bundle.path("rootfs/secret"), "secret").unwrap();
    symlink("/secret", bundle.path("rootfs/dev/null")).unwrap();

    let outcome = bundle.run(machine).unwrap();

    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
}

fn mask_cannot_be_changed(machine: &Machine) {
    let bundle = Bundle::new(machine, "chmod 666 /proc/version; echo x > /proc/version")
        .with("/linux/maskedPaths", json!(["/proc/version"]));

    let outcome = bundle.run(machine).unwrap();

    assert_eq!(
        outcome.stderr,
        "chmod: /proc/version: Read-only file system\n"
    );
}

/// Runs a container that has no streams.
fn run_without_streams(bundle: &Bundle, machine: &Machine) {
    let (containers, id, _) = bundle.create_with(machine, HostStreams::default()).unwrap();
    containers.start(ProcessId::first(&id)).unwrap();
    containers.wait(ProcessId::first(&id)).unwrap();
    containers.delete(ProcessId::first(&id)).unwrap();
}

fn null_of_the_guest_is_not_given_away(machine: &Machine) {
    let bundle =
        Bundle::new(machine, "true").with("/process/user", json!({"uid": 1000, "gid": 1000}));

    run_without_streams(&bundle, machine);

    let owner = fs::metadata("/dev/null").unwrap().uid();
    chown("/dev/null", Some(0), None).unwrap();
    assert_eq!(owner, 0);
}

fn null_of_the_guest_cannot_be_changed(machine: &Machine) {
    let before = fs::metadata("/dev/null").unwrap().permissions();
    let script = "echo x >&2; chmod 667 /proc/self/fd/0; chmod 667 /proc/self/fd/1; touch /ran";
    let bundle = Bundle::new(machine, script);

    run_without_streams(&bundle, machine);

    let after = fs::metadata("/dev/null").unwrap().permissions();
    fs::set_permissions("/dev/null", before.clone()).unwrap();
    assert!(bundle.path("rootfs/ran").exists());
    assert_eq!(after.mode(), before.mode());
}

fn streams_that_are_a_denied_null_do_no_harm(machine: &Machine) {
    let rule = json!({"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rw"});
    let bundle =
        Bundle::new(machine, "touch /ran").with("/linux/resources", json!({"devices": [rule]}));

    run_without_streams(&bundle, machine);

    assert!(bundle.path("rootfs/ran").exists());
}
