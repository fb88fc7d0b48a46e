// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and directories of the host inside a container.

use std::fs;

use coracle_tests::{Host, image};

#[test]
fn what_a_container_writes_to_a_volume_is_on_the_host() {
    let host = Host::new();
    let directory = host.files();
    fs::write(directory.join("in"), "from the host\n").unwrap();
    let volume = format!("{}:/data", directory.display());

    let run = host
        .run(&[
            "run",
            "-v",
            &volume,
            &image("busybox"),
            "sh",
            "-c",
            "cat /data/in; echo from the guest > /data/out",
        ])
        .expect(0);

    assert_eq!(run.text(), "from the host");
    assert_eq!(
        fs::read_to_string(directory.join("out")).unwrap(),
        "from the guest\n"
    );
    host.assert_clean();
}

#[test]
fn read_only_volume_is_refused_by_the_host_whatever_the_guest_mounts() {
    let host = Host::new();
    let directory = host.files();
    fs::write(directory.join("file"), "kept").unwrap();
    let before = coracle_oci::tree_hash::tree_hash(&directory).unwrap();
    let volume = format!("{}:/data:ro", directory.display());
    let script = "\
        echo x > /data/file; echo x > /data/new; rm /data/file; mkdir /data/d; chmod 777 /data/file; \
        ln /data/file /data/link; mv /data/file /data/moved; touch -d 2000-01-01 /data/file; \
        mount -o remount,rw /data; echo x > /data/new; cat /data/file";

    let run = host
        .run(&["run", "-v", &volume, &image("busybox"), "sh", "-c", script])
        .expect(0);

    assert_eq!(run.text(), "kept");
    let refusals = run.stderr.matches("Read-only file system").count();
    assert!(refusals >= 8, "{}", run.stderr);
    assert_eq!(
        coracle_oci::tree_hash::tree_hash(&directory).unwrap(),
        before
    );
}

#[test]
fn single_file_can_be_a_volume() {
    let host = Host::new();
    let file = host.files().join("file");
    fs::write(&file, "one file").unwrap();
    let volume = format!("{}:/etc/one.conf:ro", file.display());

    let run = host
        .run(&[
            "run",
            "-v",
            &volume,
            &image("busybox"),
            "cat",
            "/etc/one.conf",
        ])
        .expect(0);

    assert_eq!(run.text(), "one file");
}

#[test]
fn files_keep_owner_and_mode_both_ways() {
    let host = Host::new();
    let directory = host.files();
    let volume = format!("{}:/data", directory.display());
    let script = "umask 027; echo a > /data/a; chown 7:8 /data/a; mkdir /data/d; ln -s a /data/l; stat -c '%n %a %u %g' /data/a /data/d";

    let run = host
        .run(&["run", "-v", &volume, &image("busybox"), "sh", "-c", script])
        .expect(0);

    assert_eq!(run.text(), "/data/a 640 7 8\n/data/d 750 0 0");
    let metadata = fs::metadata(directory.join("a")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 7);
    assert_eq!(
        fs::read_link(directory.join("l")).unwrap().to_str(),
        Some("a")
    );
}
