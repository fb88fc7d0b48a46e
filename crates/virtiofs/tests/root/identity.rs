// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is made belongs to whoever made it, and follows the host's rules for that user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::{Opcode, flags};
use rustix::fs::Gid;
use zerocopy::{FromBytes, IntoBytes};

use crate::guest::{Guest, ROOT, c};

tests![
    what_is_made_belongs_to_its_maker,
    the_server_is_itself_again_afterwards,
    threads_act_as_different_users,
    nobody_makes_nothing,
    the_guest_has_decided_who_may_write_where,
    a_set_group_id_directory_passes_its_group_on,
    set_group_id_is_not_given_to_who_is_not_in_the_group,
    the_servers_groups_are_not_the_guests,
    owners_change,
];

/// A share whose root directory has group 500 and set-group-id.
fn guest_of_group() -> Guest {
    Guest::prepared(Default::default(), |share| {
        chown(share, None, Some(500)).unwrap();
        fs::set_permissions(share, fs::Permissions::from_mode(0o2777)).unwrap();
    })
}

fn what_is_made_belongs_to_its_maker() {
    let guest = Guest::new().asking_as(1000, 1001);
    let arg = CreateIn {
        flags: libc::O_RDWR.cast_unsigned(),
        mode: 0o600,
        ..CreateIn::default()
    };
    let unnamed = guest
        .call(Opcode::TmpFile, ROOT, &[arg.as_bytes(), &c("x")])
        .unwrap();

    let made = [
        guest.mkdir(ROOT, "directory", 0o755).unwrap(),
        guest.mknod(ROOT, "file", libc::S_IFREG | 0o600, 0).unwrap(),
        guest.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0).unwrap(),
        guest.symlink(ROOT, "link", "target").unwrap(),
        guest
            .create(ROOT, "created", 0o600, libc::O_RDWR)
            .unwrap()
            .0,
        EntryOut::read_from_prefix(&unnamed).unwrap().0,
    ];

    for entry in made {
        assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1001), "{entry:?}");
    }
}

fn the_server_is_itself_again_afterwards() {
    let before = rustix::thread::capabilities(None).unwrap();
    let guest = Guest::new().asking_as(1000, 1000);

    guest.mkdir(ROOT, "made", 0o755).unwrap();
    guest.mkdir(ROOT, "made", 0o755).unwrap_err();

    assert!(rustix::process::geteuid().is_root() && rustix::process::getegid().is_root());
    assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
}

fn threads_act_as_different_users() {
    let make = |user: u32| {
        let guest = Guest::new().asking_as(user, user);
        for index in 0..300 {
            let made = guest.mkdir(ROOT, &index.to_string(), 0o755).unwrap();
            assert_eq!((made.attr.uid, made.attr.gid), (user, user));
        }
    };

    std::thread::scope(|scope| {
        scope.spawn(|| make(1000));
        scope.spawn(|| make(2000));
        scope.spawn(|| make(0));
    });
}

fn nobody_makes_nothing() {
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        let guest = Guest::new().asking_as(uid, gid);

        assert_eq!(guest.mkdir(ROOT, "made", 0o755).unwrap_err(), libc::EINVAL);
        assert_eq!(fs::read_dir(guest.share()).unwrap().count(), 0);
    }
}

fn the_guest_has_decided_who_may_write_where() {
    let guest = Guest::prepared(Default::default(), |share| {
        fs::set_permissions(share, fs::Permissions::from_mode(0o700)).unwrap();
    });

    assert!(
        guest
            .asking_as(1000, 1000)
            .mkdir(ROOT, "made", 0o755)
            .is_ok()
    );
}

fn a_set_group_id_directory_passes_its_group_on() {
    let guest = guest_of_group().asking_as(1000, 1000);

    let file = guest
        .mknod(ROOT, "file", libc::S_IFREG | 0o644, 0)
        .unwrap()
        .attr;
    let directory = guest.mkdir(ROOT, "directory", 0o755).unwrap().attr;

    assert_eq!((file.uid, file.gid), (1000, 500));
    assert_eq!((directory.gid, directory.mode & 0o2000), (500, 0o2000));
}

fn set_group_id_is_not_given_to_who_is_not_in_the_group() {
    let stranger = guest_of_group().asking_as(1000, 1000);
    let member = guest_of_group().asking_as(1000, 500);

    let (by_stranger, _) = stranger.create(ROOT, "file", 0o2755, libc::O_RDWR).unwrap();
    let (by_member, _) = member.create(ROOT, "file", 0o2755, libc::O_RDWR).unwrap();

    assert_eq!(
        (by_stranger.attr.gid, by_stranger.attr.mode & 0o7777),
        (500, 0o755)
    );
    assert_eq!(
        (by_member.attr.gid, by_member.attr.mode & 0o7777),
        (500, 0o2755)
    );
}

fn the_servers_groups_are_not_the_guests() {
    rustix::thread::set_thread_groups(&[Gid::from_raw(500)]).unwrap();
    let guest = guest_of_group().asking_as(1000, 1000);

    let (file, _) = guest.create(ROOT, "file", 0o2755, libc::O_RDWR).unwrap();

    assert_eq!(file.attr.mode & 0o7777, 0o755);
}

fn owners_change() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    let symlink = guest.symlink(ROOT, "link", "../secret").unwrap();
    let to = |valid| SetAttrIn {
        valid,
        uid: 1000,
        gid: 1001,
        ..SetAttrIn::default()
    };

    let owner = guest
        .set_attributes(file.nodeid, to(flags::setattr::UID))
        .unwrap();
    let both = guest
        .set_attributes(
            symlink.nodeid,
            to(flags::setattr::UID | flags::setattr::GID),
        )
        .unwrap();

    assert_eq!((owner.uid, owner.gid), (1000, 0));
    assert_eq!((both.uid, both.gid), (1000, 1001));
    assert_eq!(fs::metadata(guest.secret()).unwrap().uid(), 0);
}
