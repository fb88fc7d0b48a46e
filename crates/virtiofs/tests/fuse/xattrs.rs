// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended attributes.

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, ROOT, c};

fn guest() -> (Guest, u64) {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    (guest, file.nodeid)
}

fn number(reply: &[u8]) -> u32 {
    u32::from_le_bytes(reply[..4].try_into().unwrap())
}

#[test]
fn an_attribute_is_set_listed_read_and_removed() {
    let (guest, node) = guest();

    guest.setxattr(node, "user.name", b"value").unwrap();

    assert_eq!(guest.getxattr(node, "user.name", 100).unwrap(), b"value");
    assert_eq!(guest.listxattr(node, 100).unwrap(), b"user.name\0");
    guest
        .tell(Opcode::RemoveXattr, node, &[&c("user.name")])
        .unwrap();
    assert_eq!(guest.getxattr(node, "user.name", 100), Err(libc::ENODATA));
    assert_eq!(guest.listxattr(node, 100).unwrap(), b"");
}

#[test]
fn a_size_of_zero_asks_for_the_size() {
    let (guest, node) = guest();
    guest.setxattr(node, "user.name", b"value").unwrap();

    assert_eq!(number(&guest.getxattr(node, "user.name", 0).unwrap()), 5);
    assert_eq!(number(&guest.listxattr(node, 0).unwrap()), 10);
}

#[test]
fn too_little_room_is_said() {
    let (guest, node) = guest();
    guest.setxattr(node, "user.name", b"value").unwrap();

    assert_eq!(guest.getxattr(node, "user.name", 4), Err(libc::ERANGE));
    assert_eq!(guest.listxattr(node, 9), Err(libc::ERANGE));
}

#[rstest]
#[case::overlay("trusted.overlay.opaque")]
#[case::label("security.selinux")]
#[case::signature("security.evm")]
#[case::access_control_list("system.posix_acl_access")]
#[case::unknown("other.name")]
fn names_that_mean_something_to_the_host_are_refused(#[case] name: &str) {
    let (guest, node) = guest();

    assert_eq!(guest.setxattr(node, name, b"value"), Err(libc::EOPNOTSUPP));
    assert_eq!(guest.getxattr(node, name, 10), Err(libc::EOPNOTSUPP));
    assert_eq!(
        guest.tell(Opcode::RemoveXattr, node, &[&c(name)]),
        Err(libc::EOPNOTSUPP)
    );
}

#[rstest]
#[case::empty("")]
#[case::too_long(&format!("user.{}", "n".repeat(251)))]
fn names_without_a_proper_length_are_refused(#[case] name: &str) {
    let (guest, node) = guest();

    assert_eq!(guest.getxattr(node, name, 10), Err(libc::ERANGE));
}

#[rstest]
#[case::create(1, Err(libc::EEXIST))]
#[case::replace(2, Ok(()))]
#[case::unknown(4, Err(libc::EINVAL))]
fn setting_heeds_its_flags(#[case] flags: u32, #[case] expected: Result<(), i32>) {
    let (guest, node) = guest();
    guest.setxattr(node, "user.name", b"old").unwrap();
    let arg = SetXattrIn { size: 3, flags };

    let answer = guest.tell(
        Opcode::SetXattr,
        node,
        &[arg.as_bytes(), &c("user.name"), b"new"],
    );

    assert_eq!(answer, expected);
}
