// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listing directories.

use std::collections::BTreeSet;
use std::fs;

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, Listed, ROOT};

fn guest_with(files: usize) -> Guest {
    Guest::prepared(Default::default(), |share| {
        for index in 0..files {
            fs::write(share.join(format!("file{index}")), "x").unwrap();
        }
    })
}

/// Reads to the end, `size` bytes at a time, as a kernel does.
fn list(guest: &Guest, node: u64, size: u32, plus: bool) -> Vec<Listed> {
    let fh = guest.opendir(node).unwrap();
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |last| last.next_offset);
        let part = guest.readdir(node, fh, offset, size, plus).unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend(part);
        assert!(all.len() < 10_000, "the listing does not end");
    }
}

#[rstest]
fn everything_is_listed_once_however_small_the_reply(
    #[values(200, 512, 4096, 1 << 20)] size: u32,
    #[values(false, true)] plus: bool,
) {
    let guest = guest_with(300);

    let all = list(&guest, ROOT, size, plus);

    let names: BTreeSet<_> = all.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!((all.len(), names.len()), (302, 302));
    assert!(names.contains("file299") && names.contains(".") && names.contains(".."));
}

#[test]
fn attributes_and_a_reference_come_with_each_name_but_the_two_dots() {
    let guest = guest_with(3);

    let all = list(&guest, ROOT, 4096, true);

    for Listed {
        name,
        inode,
        entry,
        kind,
        ..
    } in all
    {
        let entry = entry.unwrap();
        if name.starts_with("file") {
            assert_eq!(
                (entry.attr.size, entry.attr.ino, kind),
                (1, inode, u32::from(libc::DT_REG))
            );
            assert_eq!(guest.node(&name), entry.nodeid);
            guest.forget(entry.nodeid, 1);
            assert!(
                guest.attributes(entry.nodeid).is_ok(),
                "the listing counts as a reference"
            );
        } else {
            assert_eq!(entry, EntryOut::default());
        }
    }
}

#[test]
fn the_parent_of_the_root_is_not_told() {
    let guest = guest_with(0);
    let above = std::os::unix::fs::MetadataExt::ino(
        &fs::metadata(guest.secret().parent().unwrap()).unwrap(),
    );

    let all = list(&guest, ROOT, 4096, false);

    assert!(all.iter().all(|entry| entry.inode != above));
}

#[test]
fn a_reply_without_room_for_an_entry_is_empty() {
    let guest = guest_with(3);
    let fh = guest.opendir(ROOT).unwrap();

    assert!(guest.readdir(ROOT, fh, 0, 16, false).unwrap().is_empty());
    assert!(guest.readdir(ROOT, fh, 0, 0, true).unwrap().is_empty());
}

#[rstest]
#[case::negative(u64::MAX)]
#[case::far(i64::MAX.cast_unsigned())]
fn an_offset_from_nowhere_does_no_harm(#[case] offset: u64) {
    let guest = guest_with(3);
    let fh = guest.opendir(ROOT).unwrap();

    let entries = guest.readdir(ROOT, fh, offset, 4096, true);

    assert!(entries.is_ok_and(|entries| entries.len() <= 5) || offset == u64::MAX);
}

#[test]
fn a_directory_handle_is_no_file_handle() {
    let guest = guest_with(1);
    let node = guest.node("file0");
    let (directory, file) = (
        guest.opendir(ROOT).unwrap(),
        guest.open(node, libc::O_RDONLY).unwrap(),
    );

    assert_eq!(guest.read(ROOT, directory, 0, 10), Err(libc::EBADF));
    assert_eq!(
        guest.readdir(node, file, 0, 4096, false).unwrap_err(),
        libc::EBADF
    );
}

#[test]
fn a_directory_handle_ends_with_its_release() {
    let guest = guest_with(1);
    let fh = guest.opendir(ROOT).unwrap();
    let arg = ReleaseIn {
        fh,
        ..ReleaseIn::default()
    };

    assert_eq!(
        guest.tell(Opcode::ReleaseDir, ROOT, &[arg.as_bytes()]),
        Ok(())
    );
    assert_eq!(
        guest.readdir(ROOT, fh, 0, 4096, false).unwrap_err(),
        libc::EBADF
    );
}

#[test]
fn a_file_removed_while_its_directory_is_read_is_left_out() {
    let guest = guest_with(100);
    let fh = guest.opendir(ROOT).unwrap();
    let first = guest.readdir(ROOT, fh, 0, 512, true).unwrap();
    for index in 0..100 {
        fs::remove_file(guest.share().join(format!("file{index}"))).unwrap();
    }

    let rest = guest
        .readdir(ROOT, fh, first.last().unwrap().next_offset, 1 << 16, true)
        .unwrap();

    assert!(
        rest.iter().all(|entry| entry.name.starts_with('.')),
        "{rest:?}"
    );
}
