// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest can make the host hold for it.

use coracle_virtiofs::passthrough::FsConfig;
use rstest::rstest;

use crate::guest::{Guest, ROOT};

fn guest(max_inodes: usize, max_handles: usize) -> Guest {
    let config = FsConfig {
        max_inodes,
        max_handles,
        ..FsConfig::default()
    };
    Guest::prepared(config, |share| {
        for index in 0..10 {
            std::fs::write(share.join(format!("file{index}")), "x").unwrap();
        }
    })
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn inodes_are_bounded_and_forgetting_makes_room() {
    let guest = guest(3, 10);
    let held: Vec<_> = (0..3)
        .map(|index| guest.node(&format!("file{index}")))
        .collect();

    assert_eq!(guest.lookup(ROOT, "file3").unwrap_err(), libc::ENFILE);
    // What is held already needs no room.
    assert_eq!(guest.node("file0"), held[0]);
    guest.forget(held[1], 1);
    assert!(guest.lookup(ROOT, "file3").is_ok());
}

#[test]
fn nothing_is_made_for_which_there_is_no_room() {
    let guest = guest(1, 10);
    guest.node("file0");

    assert_eq!(
        guest.mkdir(ROOT, "directory", 0o755).unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(
        guest.mknod(ROOT, "node", libc::S_IFREG, 0).unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(
        guest.symlink(ROOT, "link", "target").unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(
        guest
            .create(ROOT, "created", 0o600, libc::O_RDWR)
            .unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(std::fs::read_dir(guest.share()).unwrap().count(), 10);
}

#[test]
fn a_directory_is_listed_even_where_there_is_no_room_for_its_inodes() {
    let guest = guest(4, 10);
    let fh = guest.opendir(ROOT).unwrap();

    let all = guest.readdir(ROOT, fh, 0, 1 << 16, true).unwrap();

    assert_eq!(all.len(), 12);
    assert_eq!(
        all.iter()
            .filter(|entry| entry.entry.unwrap().nodeid != 0)
            .count(),
        4
    );
}

#[rstest]
#[case::files(false)]
#[case::directories(true)]
fn handles_are_bounded_and_releasing_makes_room(#[case] directories: bool) {
    let guest = guest(10, 3);
    let node = if directories {
        ROOT
    } else {
        guest.node("file0")
    };
    let open = || {
        if directories {
            guest.opendir(node)
        } else {
            guest.open(node, libc::O_RDONLY)
        }
    };
    let held: Vec<_> = (0..3).map(|_| open().unwrap()).collect();

    assert_eq!(open(), Err(libc::ENFILE));
    assert_eq!(
        guest.create(ROOT, "new", 0o600, libc::O_RDWR).unwrap_err(),
        libc::ENFILE
    );
    assert!(!guest.share().join("new").exists());
    guest.release(node, held[0]).unwrap();
    assert!(open().is_ok());
}

#[test]
fn truncating_is_not_done_where_opening_fails() {
    let guest = guest(10, 0);
    let node = guest.node("file0");

    assert_eq!(
        guest.open(node, libc::O_WRONLY | libc::O_TRUNC),
        Err(libc::ENFILE)
    );
    assert_eq!(guest.attributes(node).unwrap().size, 1);
}

#[test]
fn a_guest_that_goes_round_in_circles_holds_no_more_descriptors_than_it_may() {
    let guest = guest(5, 5);
    let before = descriptors();

    for round in 0..1000 {
        let name = format!("file{}", round % 10);
        if let Ok(entry) = guest.lookup(ROOT, &name) {
            let _ = guest.open(entry.nodeid, libc::O_RDONLY);
        }
        let _ = guest.create(ROOT, &name, 0o600, libc::O_RDWR);
        let _ = guest.opendir(ROOT);
        let _ = guest.listxattr(ROOT, 100);
    }

    // Other tests of this process open files meanwhile.
    assert!(
        descriptors() < before + 500,
        "{before} descriptors became {}",
        descriptors()
    );
}
