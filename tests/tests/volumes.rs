// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and directories of the host inside a container.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_guest::cpio::Archive;
use coracle_tests::{Host, image, path_from_environment};

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
fn what_the_host_mounts_later_does_not_appear_in_a_read_only_volume() {
    let host = Host::new();
    let directory = host.files().join("volume");
    let later = directory.join("later");
    fs::create_dir_all(&later).unwrap();
    let volume = format!("{}:/data:ro", directory.display());
    let script = "echo ready; read word; echo x > /data/later/new; ls /data/later";
    let mut command = host.coracle(&["run", "-v", &volume, &image("busybox"), "sh", "-c", script]);
    command.stdin(Stdio::piped());
    let mut run = host.start(command);
    assert_eq!(run.line(), "ready");

    mount(&["-t", "tmpfs", "later", later.to_str().unwrap()]);
    fs::write(later.join("of the host"), "").unwrap();
    drop(run.stdin());
    let run = run.finish().expect(0);
    let there = fs::read_dir(&later).unwrap().count();
    unmount(&later);

    assert_eq!(run.text(), "");
    assert!(
        run.stderr.contains("Read-only file system"),
        "{}",
        run.stderr
    );
    assert_eq!(there, 1, "the container has written nothing");
}

fn mount(words: &[&str]) {
    let status = Command::new("mount").args(words).status().unwrap();
    assert!(status.success(), "mount {words:?}: {status}");
}

fn unmount(point: &Path) {
    let status = Command::new("umount").arg(point).status().unwrap();
    assert!(status.success(), "umount {}: {status}", point.display());
}

/// What a guest does whose kernel belongs to an attacker: no agent, no container, only the share.
const HOSTILE_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /share
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod /modules/$module; done < /modules/order
/bin/busybox mount -t virtiofs share /share
exec > /dev/hvc0 2>&1
cd /share/volumes/0
for attempt in 'echo x > /share/new' 'echo x > /share/volumes/new' 'echo x > file' 'echo x >> file' '/bin/busybox rm file' 'echo x > new' '/bin/busybox mkdir new' \\
    '/bin/busybox mv file moved' '/bin/busybox ln file link' '/bin/busybox chmod 777 file' '/bin/busybox chown 7 file' \\
    '/bin/busybox touch file' '/bin/busybox truncate -s 0 file' '/bin/busybox mknod null c 1 3'; do
    if (eval $attempt) 2>/dev/null; then echo done: $attempt; else echo refused; fi
done
echo read: $(/bin/busybox cat file)
/bin/busybox reboot -f
";

#[test]
fn guest_without_our_agent_cannot_write_a_read_only_volume() {
    let host = Host::new();
    let directory = host.files().join("volume");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "kept").unwrap();
    let before = coracle_oci::tree_hash::tree_hash(&directory).unwrap();
    let initrd = host.files().join("hostile.cpio");
    let ours = path_from_environment("CORACLE_GUEST").join("initramfs.cpio");
    // Of two archives in a row, the kernel takes each file from the last that has it.
    let mut archive = Archive::new(fs::read(ours).unwrap());
    archive.directory("bin", 0o755).unwrap();
    let busybox = fs::read("/bin/busybox").unwrap();
    archive.file("bin/busybox", 0o755, &busybox).unwrap();
    archive
        .file("init", 0o755, HOSTILE_INIT.as_bytes())
        .unwrap();
    fs::write(&initrd, archive.finish().unwrap()).unwrap();
    let volume = format!("{}:/data:ro", directory.display());

    let words = [
        "run",
        "--initrd",
        initrd.to_str().unwrap(),
        "-v",
        &volume,
        &image("busybox"),
        "true",
    ];
    let run = host.run(&words).expect(125);

    assert!(run.stderr.contains("guest| read: kept"), "{}", run.stderr);
    assert_eq!(
        run.stderr.matches("guest| refused").count(),
        14,
        "{}",
        run.stderr
    );
    assert_eq!(
        coracle_oci::tree_hash::tree_hash(&directory).unwrap(),
        before
    );
    host.assert_clean();
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
