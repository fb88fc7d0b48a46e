// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attributes.

use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::flags::setattr;
use rstest::rstest;

use crate::guest::{Guest, ROOT, mode};

#[test]
fn the_mode_changes_and_nothing_else() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();

    // The type of a file is not to be changed.
    let after = guest
        .set_attributes(file.nodeid, mode(libc::S_IFDIR | 0o4755))
        .unwrap();

    assert_eq!(after.mode, libc::S_IFREG | 0o4755);
    assert_eq!(
        (after.size, after.uid, after.mtime),
        (file.attr.size, file.attr.uid, file.attr.mtime)
    );
}

#[test]
fn times_are_set_to_the_nanosecond() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    let change = SetAttrIn {
        valid: setattr::ATIME | setattr::MTIME,
        atime: 1_000_000_000,
        atimensec: 1,
        mtime: (-1_i64).cast_unsigned(),
        mtimensec: 999_999_999,
        ..SetAttrIn::default()
    };

    let after = guest.set_attributes(file.nodeid, change).unwrap();

    assert_eq!((after.atime, after.atimensec), (1_000_000_000, 1));
    assert_eq!(
        (after.mtime.cast_signed(), after.mtimensec),
        (-1, 999_999_999)
    );
}

#[test]
fn one_time_is_set_to_now_and_the_other_stays() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    let old = SetAttrIn {
        valid: setattr::ATIME | setattr::MTIME,
        atime: 5,
        mtime: 5,
        ..SetAttrIn::default()
    };
    guest.set_attributes(file.nodeid, old).unwrap();

    let now = SetAttrIn {
        valid: setattr::MTIME | setattr::MTIME_NOW,
        ..SetAttrIn::default()
    };
    let after = guest.set_attributes(file.nodeid, now).unwrap();

    assert_eq!(after.atime, 5);
    assert!(after.mtime > 1_000_000_000);
}

#[rstest]
#[case::a_second(1_000_000_000)]
#[case::now((1 << 30) - 1)]
#[case::omit((1 << 30) - 2)]
#[case::largest(u32::MAX)]
fn nanoseconds_that_are_none_are_refused(#[case] mtimensec: u32) {
    let guest = Guest::new();
    let change = SetAttrIn {
        valid: setattr::MTIME,
        mtimensec,
        ..SetAttrIn::default()
    };

    assert_eq!(guest.set_attributes(ROOT, change), Err(libc::EINVAL));
}

#[rstest]
#[case::owner(setattr::UID)]
#[case::group(setattr::GID)]
fn nobody_is_no_owner(#[case] valid: u32) {
    let guest = Guest::new();
    let change = SetAttrIn {
        valid,
        uid: u32::MAX,
        gid: u32::MAX,
        ..SetAttrIn::default()
    };

    assert_eq!(guest.set_attributes(ROOT, change), Err(libc::EINVAL));
}

#[rstest]
#[case::never_given(77)]
#[case::zero(0)]
#[case::largest(u64::MAX)]
fn a_node_that_was_never_given_is_refused(#[case] node: u64) {
    let guest = Guest::new();

    assert_eq!(guest.attributes(node), Err(libc::EBADF));
    assert_eq!(guest.set_attributes(node, mode(0)), Err(libc::EBADF));
    assert_eq!(guest.open(node, libc::O_RDONLY), Err(libc::EBADF));
    assert_eq!(guest.lookup(node, "name").unwrap_err(), libc::EBADF);
}
