// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shares that other mounts lie in.

use std::fs;
use std::path::Path;

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::flags;
use coracle_virtiofs::sandbox::confine;
use rustix::fs::CWD;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount, mount_bind, mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::guest::{Guest, ROOT, directory};

tests![
    a_mount_is_entered_and_marked,
    names_do_not_cross_mounts,
    a_file_seen_through_two_mounts_is_two_nodes,
    a_read_only_mount_of_the_host_stays_so,
    confined_mounts_hold_files_alone,
];

/// Mounts made by this thread vanish with it.
pub fn private_mounts() {
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
}

/// A share with `mount`, a file system of its own, and `view`, a read-only view of the directory `real`.
fn guest() -> Guest {
    private_mounts();
    Guest::prepared(Default::default(), |share| {
        for name in ["mount", "real", "view"] {
            fs::create_dir(share.join(name)).unwrap();
        }
        fs::write(share.join("real/file"), "content").unwrap();
        mount(
            "tmpfs",
            share.join("mount"),
            "tmpfs",
            MountFlags::empty(),
            None,
        )
        .unwrap();
        mount_bind(share.join("real"), share.join("view")).unwrap();
        mount_remount(
            share.join("view"),
            MountFlags::BIND | MountFlags::RDONLY,
            "",
        )
        .unwrap();
    })
}

fn a_mount_is_entered_and_marked() {
    let guest = guest();

    let (plain, mount) = (
        guest.lookup(ROOT, "real").unwrap(),
        guest.lookup(ROOT, "mount").unwrap(),
    );
    let (file, _) = guest
        .create(mount.nodeid, "file", 0o600, libc::O_RDWR)
        .unwrap();

    assert_eq!(
        (plain.attr.flags, mount.attr.flags),
        (0, flags::attr::SUBMOUNT)
    );
    assert_eq!(
        guest.lookup(mount.nodeid, "file").unwrap().nodeid,
        file.nodeid
    );
    assert!(guest.share().join("mount/file").exists());
    let fh = guest.opendir(ROOT).unwrap();
    let listed = guest.readdir(ROOT, fh, 0, 4096, true).unwrap();
    let listed = listed.iter().find(|entry| entry.name == "mount").unwrap();
    assert_eq!(listed.entry.unwrap().attr.flags, flags::attr::SUBMOUNT);
}

fn names_do_not_cross_mounts() {
    let guest = guest();
    let mount = guest.node("mount");
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();

    assert_eq!(
        guest.rename(ROOT, "file", mount, "file", 0),
        Err(libc::EXDEV)
    );
    assert_eq!(
        guest.link(file.nodeid, mount, "file").unwrap_err(),
        libc::EXDEV
    );
}

fn a_file_seen_through_two_mounts_is_two_nodes() {
    let guest = guest();
    let (real, view) = (guest.node("real"), guest.node("view"));

    let (by_real, by_view) = (
        guest.lookup(real, "file").unwrap(),
        guest.lookup(view, "file").unwrap(),
    );

    assert_ne!(by_real.nodeid, by_view.nodeid);
    assert_eq!(by_real.attr.ino, by_view.attr.ino);
}

fn a_read_only_mount_of_the_host_stays_so() {
    let guest = guest();
    let (real, view) = (guest.node("real"), guest.node("view"));
    // That the other way to it is known must not help.
    guest.lookup(real, "file").unwrap();
    let file = guest.lookup(view, "file").unwrap().nodeid;

    assert_eq!(guest.open(file, libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(
        guest.set_attributes(file, crate::guest::mode(0o777)),
        Err(libc::EROFS)
    );
    assert_eq!(
        guest.setxattr(file, "user.name", b"value"),
        Err(libc::EROFS)
    );
    assert_eq!(guest.unlink(view, "file"), Err(libc::EROFS));
    let stat: StatfsOut = guest.ask(Opcode::StatFs, view, &[]).unwrap();
    assert!(stat.blocks > 0);
    assert_eq!(
        fs::read(guest.share().join("real/file")).unwrap(),
        b"content"
    );
}

fn confined_mounts_hold_files_alone() {
    private_mounts();
    let directory = directory();
    let tree = directory.path().join("tree");
    let target = directory.path().join("share");
    for path in [tree.clone(), tree.join("below")] {
        fs::create_dir_all(&path).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(&path, MountPropagationFlags::SHARED).unwrap();
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
    let clone = open_tree(CWD, &tree, flags).unwrap();

    confine(
        &clone,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountPropagationFlags::PRIVATE,
    )
    .unwrap();

    let attach = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&clone, "", CWD, &target, attach).unwrap();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    // Number, parent, device, root, path, attributes, what it shares.
    let of = |path: &Path| -> Vec<&str> {
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == path.to_str())
            .unwrap();
        line.split(' ').skip(5).take(2).collect()
    };
    for path in [&target, &target.join("below")] {
        assert_eq!(of(path), ["ro,nosuid,nodev,noexec,relatime", "-"]);
    }
    assert!(of(&tree)[1].starts_with("shared:"));
    for path in [&target, &tree] {
        unmount(path, UnmountFlags::DETACH).unwrap();
    }
}
