// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and directories of the host inside a container.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coracle_tests::tools::{self, fingerprint};
use coracle_tests::{Host, Image, guests};
use rstest::rstest;

#[rstest]
fn what_a_container_writes_to_a_volume_is_on_the_host(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    host.file("in", "from the host\n");

    let run = host
        .container(image)
        .volume(&host.files(), "/data")
        .shell("cat /data/in; echo from the guest > /data/out")
        .expect(0);

    assert_eq!(run.text(), "from the host");
    let written = fs::read_to_string(host.files().join("out")).unwrap();
    assert_eq!(written, "from the guest\n");
    host.assert_clean();
}

#[rstest]
fn read_only_volume_is_refused_by_the_host_whatever_the_guest_mounts(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    host.file("file", "kept");
    let before = fingerprint(&host.files());
    let script = "\
        echo x > /data/file; echo x > /data/new; rm /data/file; mkdir /data/d; chmod 777 /data/file; \
        ln /data/file /data/link; mv /data/file /data/moved; touch -d 2000-01-01 /data/file; \
        mount -o remount,rw /data; echo x > /data/new; cat /data/file";

    let run = host
        .container(image)
        .volume(&host.files(), "/data:ro")
        .shell(script)
        .expect(0);

    assert_eq!(run.text(), "kept");
    let refusals = run.stderr.matches("Read-only file system").count();
    assert!(refusals >= 8, "{}", run.stderr);
    assert_eq!(fingerprint(&host.files()), before);
}

#[test]
fn what_the_host_mounts_later_does_not_appear_in_a_read_only_volume() {
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    let later = host.folder("volume/later");
    let mut run = host
        .container(Image::BUSYBOX)
        .volume(&volume, "/data:ro")
        .interactive()
        .shell("echo ready; read word; echo x > /data/later/new; ls /data/later")
        .start();
    assert_eq!(run.line(), "ready");

    let point = later.to_str().unwrap();
    tools::run("mount", &["-t", "tmpfs", "later", point]);
    fs::write(later.join("of the host"), "").unwrap();
    drop(run.stdin());
    let run = run.finish().expect(0);
    let there = fs::read_dir(&later).unwrap().count();
    tools::run("umount", &[point]);

    assert_eq!(run.text(), "");
    run.says("Read-only file system");
    assert_eq!(there, 1, "the container has written nothing");
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
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    host.file("volume/file", "kept");
    let before = fingerprint(&volume);
    let initrd = guests::initramfs_with(HOSTILE_INIT.as_bytes(), &[]);
    let initrd = host.file("hostile.cpio", initrd);

    let run = host
        .container(Image::BUSYBOX)
        .initrd(&initrd)
        .volume(&volume, "/data:ro")
        .command(["true"])
        .expect(125);

    let run = run.says("guest| read: kept");
    let refusals = run.stderr.matches("guest| refused").count();
    assert_eq!(refusals, 14, "{}", run.stderr);
    assert_eq!(fingerprint(&volume), before);
    host.assert_clean();
}

#[rstest]
fn single_file_can_be_a_volume(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let file = host.file("file", "one file");

    let run = host
        .container(image)
        .volume(&file, "/etc/one.conf:ro")
        .command(["cat", "/etc/one.conf"])
        .expect(0);

    assert_eq!(run.text(), "one file");
}

#[rstest]
fn files_keep_owner_and_mode_both_ways(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let script = "umask 027; echo a > /data/a; chown 7:8 /data/a; mkdir /data/d; ln -s a /data/l; \
                  stat -c '%n %a %u %g' /data/a /data/d";

    let run = host
        .container(image)
        .volume(&host.files(), "/data")
        .shell(script)
        .expect(0);

    assert_eq!(run.text(), "/data/a 640 7 8\n/data/d 750 0 0");
    let metadata = fs::metadata(host.files().join("a")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
    let link = fs::read_link(host.files().join("l")).unwrap();
    assert_eq!(link.to_str(), Some("a"));
}
