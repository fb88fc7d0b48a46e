// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Set-user-id, set-group-id, file capabilities and device nodes.

use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::flags;
use coracle_virtiofs::passthrough::FsConfig;

use crate::guest::{Guest, ROOT, mode, size};

tests![
    a_write_removes_set_user_id_when_told,
    a_write_of_the_guests_root_keeps_set_user_id,
    truncating_removes_set_user_id_when_told,
    opening_to_truncate_removes_set_user_id_when_told,
    every_write_removes_file_capabilities,
    a_new_owner_removes_file_capabilities_and_set_user_id,
    set_group_id_stays_where_the_guests_root_sets_it,
    a_device_node_is_made_and_never_opened,
    device_nodes_can_be_ruled_out_but_for_whiteouts,
];

/// `cap_net_raw` in the permitted set, as `setcap` writes it (`VFS_CAP_REVISION_2`).
const CAPABILITIES: &[u8] =
    b"\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
const NAME: &str = "security.capability";

/// A guest with a program that has set-user-id and set-group-id, and a handle to write to it.
fn guest() -> (Guest, u64, u64) {
    let guest = Guest::new();
    let (file, opened) = guest.create(ROOT, "program", 0o755, libc::O_RDWR).unwrap();
    guest.write(file.nodeid, opened.fh, 0, b"code").unwrap();
    guest.set_attributes(file.nodeid, mode(0o6755)).unwrap();
    (guest, file.nodeid, opened.fh)
}

fn bits(guest: &Guest, node: u64) -> u32 {
    guest.attributes(node).unwrap().mode & 0o7777
}

fn a_write_removes_set_user_id_when_told() {
    let (guest, node, fh) = guest();
    let arg = WriteIn {
        fh,
        write_flags: flags::write::KILL_SUIDGID,
        ..WriteIn::default()
    };

    guest.write_with(node, arg, b"x").unwrap();

    assert_eq!(bits(&guest, node), 0o755);
    // And not only once: the capability that prevents it is back.
    guest.set_attributes(node, mode(0o6755)).unwrap();
    assert_eq!(bits(&guest, node), 0o6755);
}

fn a_write_of_the_guests_root_keeps_set_user_id() {
    let (guest, node, fh) = guest();

    guest.write(node, fh, 0, b"x").unwrap();

    assert_eq!(bits(&guest, node), 0o6755);
}

fn truncating_removes_set_user_id_when_told() {
    let (guest, node, fh) = guest();
    let kill = |change: SetAttrIn| SetAttrIn {
        valid: change.valid | flags::setattr::KILL_SUIDGID,
        ..change
    };

    guest.set_attributes(node, kill(size(2))).unwrap();
    assert_eq!(bits(&guest, node), 0o755);

    guest.set_attributes(node, mode(0o6755)).unwrap();
    let by_handle = SetAttrIn {
        valid: flags::setattr::SIZE | flags::setattr::FH,
        fh,
        ..SetAttrIn::default()
    };
    guest.set_attributes(node, kill(by_handle)).unwrap();
    assert_eq!(bits(&guest, node), 0o755);
}

fn opening_to_truncate_removes_set_user_id_when_told() {
    let (guest, node, _) = guest();

    guest
        .open_with(node, libc::O_WRONLY | libc::O_TRUNC, 0)
        .unwrap();
    assert_eq!(bits(&guest, node), 0o6755);

    guest
        .open_with(
            node,
            libc::O_WRONLY | libc::O_TRUNC,
            flags::open_in::KILL_SUIDGID,
        )
        .unwrap();
    assert_eq!(bits(&guest, node), 0o755);
}

fn every_write_removes_file_capabilities() {
    let (guest, node, fh) = guest();
    guest.setxattr(node, NAME, CAPABILITIES).unwrap();
    assert_eq!(guest.getxattr(node, NAME, 100).unwrap(), CAPABILITIES);
    assert_eq!(
        guest.listxattr(node, 100).unwrap(),
        b"security.capability\0"
    );

    guest.write(node, fh, 0, b"x").unwrap();

    assert_eq!(guest.getxattr(node, NAME, 100), Err(libc::ENODATA));
}

fn a_new_owner_removes_file_capabilities_and_set_user_id() {
    let (guest, node, _) = guest();
    guest.setxattr(node, NAME, CAPABILITIES).unwrap();

    let change = SetAttrIn {
        valid: flags::setattr::UID,
        uid: 1000,
        ..SetAttrIn::default()
    };
    guest.set_attributes(node, change).unwrap();

    assert_eq!(bits(&guest, node), 0o755);
    assert_eq!(guest.getxattr(node, NAME, 100), Err(libc::ENODATA));
}

fn set_group_id_stays_where_the_guests_root_sets_it() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o755, libc::O_RDWR).unwrap();
    let group = SetAttrIn {
        valid: flags::setattr::GID,
        gid: 500,
        ..SetAttrIn::default()
    };
    guest.set_attributes(file.nodeid, group).unwrap();

    guest.set_attributes(file.nodeid, mode(0o2755)).unwrap();

    assert_eq!(bits(&guest, file.nodeid), 0o2755);
}

fn a_device_node_is_made_and_never_opened() {
    let guest = Guest::new();

    // The null device, which anybody may open.
    let null = guest
        .mknod(ROOT, "null", libc::S_IFCHR | 0o666, 0x103)
        .unwrap();
    let disk = guest
        .mknod(ROOT, "disk", libc::S_IFBLK | 0o600, 0x1234_5678)
        .unwrap();

    assert_eq!((null.attr.rdev, disk.attr.rdev), (0x103, 0x1234_5678));
    for node in [null.nodeid, disk.nodeid] {
        assert_eq!(guest.open(node, libc::O_RDWR), Err(libc::ENXIO));
        assert_eq!(guest.getxattr(node, "user.name", 0), Err(libc::ENODATA));
        assert_eq!(guest.set_attributes(node, size(0)), Err(libc::ENXIO));
    }
    assert_eq!(
        guest.create(ROOT, "null", 0o600, libc::O_RDWR).unwrap_err(),
        libc::ENXIO
    );
}

fn device_nodes_can_be_ruled_out_but_for_whiteouts() {
    let guest = Guest::with(FsConfig {
        device_nodes: false,
        ..FsConfig::default()
    });

    assert_eq!(
        guest
            .mknod(ROOT, "null", libc::S_IFCHR | 0o666, 0x103)
            .unwrap_err(),
        libc::EPERM
    );
    assert_eq!(
        guest
            .mknod(ROOT, "disk", libc::S_IFBLK | 0o600, 0)
            .unwrap_err(),
        libc::EPERM
    );
    assert_eq!(
        guest
            .mknod(ROOT, "whiteout", libc::S_IFCHR | 0o600, 0)
            .unwrap()
            .attr
            .rdev,
        0
    );
}
