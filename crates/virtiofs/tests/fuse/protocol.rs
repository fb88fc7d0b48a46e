// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that are no proper requests.

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, ROOT, c};

#[test]
fn nothing_is_served_before_init() {
    let guest = Guest::new();
    guest.tell(Opcode::Destroy, 0, &[]).unwrap();

    assert_eq!(guest.attributes(ROOT), Err(libc::EIO));
}

#[test]
fn a_new_kernel_finds_nothing_of_the_last_ones() {
    let mut guest = Guest::new();
    let (entry, opened) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();

    guest.init().unwrap();

    assert_eq!(guest.attributes(entry.nodeid), Err(libc::EBADF));
    assert_eq!(guest.read(entry.nodeid, opened.fh, 0, 10), Err(libc::EBADF));
    assert_ne!(guest.node("file"), entry.nodeid);
}

#[rstest]
#[case::nothing(&[0; 0])]
#[case::half_a_header(&[0; 39])]
fn a_request_without_a_header_gets_no_reply(#[case] request: &[u8]) {
    // A descriptor has at least one byte.
    let request = if request.is_empty() {
        &[0][..]
    } else {
        request
    };

    assert_eq!(Guest::new().bytes(request, 4096), 0);
}

#[rstest]
#[case::longer_than_the_chain(200)]
#[case::as_long_as_it_can_say(u32::MAX)]
#[case::shorter_than_its_header(39)]
#[case::zero(0)]
fn a_request_that_lies_about_its_length_is_refused(#[case] len: u32) {
    let guest = Guest::new();
    let header = InHeader {
        len,
        opcode: Opcode::Lookup as u32,
        nodeid: ROOT,
        ..InHeader::default()
    };

    let used = guest.bytes(&[header.as_bytes(), b"file\0"].concat(), 4096);

    assert_eq!(used, 16);
}

#[test]
fn an_extension_longer_than_the_request_is_refused() {
    let guest = Guest::new();
    let header = InHeader {
        len: 45,
        total_extlen: u16::MAX,
        opcode: 1,
        nodeid: ROOT,
        ..InHeader::default()
    };

    assert_eq!(
        guest.bytes(&[header.as_bytes(), b"file\0"].concat(), 4096),
        16
    );
}

#[rstest]
#[case::zero(0)]
#[case::gap(7)]
#[case::beyond(52)]
#[case::cuse(4096)]
#[case::largest(u32::MAX)]
fn an_unknown_opcode_is_not_implemented(#[case] opcode: u32) {
    assert_eq!(
        Guest::new().raw(opcode, ROOT, b"body", 4096),
        Err(libc::ENOSYS)
    );
}

#[rstest]
#[case::getlk(Opcode::GetLk)]
#[case::setlk(Opcode::SetLk)]
#[case::setlkw(Opcode::SetLkw)]
#[case::access(Opcode::Access)]
#[case::bmap(Opcode::Bmap)]
#[case::ioctl(Opcode::Ioctl)]
#[case::poll(Opcode::Poll)]
#[case::setup_mapping(Opcode::SetupMapping)]
#[case::remove_mapping(Opcode::RemoveMapping)]
fn what_the_guest_does_by_itself_is_not_implemented(#[case] opcode: Opcode) {
    assert_eq!(
        Guest::new().call(opcode, ROOT, &[&[0; 64]]),
        Err(libc::ENOSYS)
    );
}

#[test]
fn what_cannot_be_answered_is_not_done() {
    let guest = Guest::new();
    let header = InHeader {
        len: 52,
        opcode: Opcode::Mkdir as u32,
        nodeid: ROOT,
        ..InHeader::default()
    };
    let request = [
        header.as_bytes(),
        MkdirIn {
            mode: 0o700,
            umask: 0,
        }
        .as_bytes(),
        b"new\0",
    ]
    .concat();

    let used = guest.bytes(&request, 15);

    assert_eq!(used, 0);
    assert!(!guest.share().join("new").exists());
}

#[test]
fn a_reply_for_which_there_is_no_room_becomes_an_error() {
    let guest = Guest::new();

    assert_eq!(
        guest.raw(Opcode::StatFs as u32, ROOT, &[], 79),
        Err(libc::EIO)
    );
}

#[rstest]
#[case::missing_structure(Opcode::Mkdir, &[0; 7])]
#[case::missing_name(Opcode::Lookup, b"")]
#[case::name_without_end(Opcode::Lookup, b"file")]
#[case::two_names(Opcode::Lookup, b"file\0file\0")]
#[case::missing_second_name(Opcode::Symlink, b"file\0")]
#[case::missing_handle(Opcode::Read, &[0; 39])]
#[case::bytes_too_many(Opcode::Read, &[0; 41])]
#[case::fewer_forgets_than_it_says(Opcode::BatchForget, &[255; 24])]
#[case::value_shorter_than_it_says(Opcode::SetXattr, b"\xff\0\0\0\0\0\0\0user.a\0value")]
fn a_body_that_does_not_fit_its_opcode_is_refused(#[case] opcode: Opcode, #[case] body: &[u8]) {
    let guest = Guest::new();
    let header = InHeader {
        len: u32::try_from(40 + body.len()).unwrap(),
        opcode: opcode as u32,
        nodeid: ROOT,
        ..InHeader::default()
    };

    let used = guest.bytes(&[header.as_bytes(), body].concat(), 4096);

    assert_eq!(used, if opcode.is_one_way() { 0 } else { 16 });
}

#[test]
fn a_body_longer_than_any_request_is_not_copied() {
    let guest = Guest::new();

    assert_eq!(
        guest.call(Opcode::Lookup, ROOT, &[&vec![b'n'; 100_000], b"\0"]),
        Err(libc::E2BIG)
    );
}

#[test]
fn a_link_target_longer_than_a_path_is_refused() {
    let guest = Guest::new();

    assert_eq!(
        guest.symlink(ROOT, "link", &"t".repeat(4096)).unwrap_err(),
        libc::ENAMETOOLONG
    );
    assert_eq!(guest.symlink(ROOT, "link", "").unwrap_err(), libc::EINVAL);
}

#[test]
fn the_old_form_of_init_is_understood() {
    let guest = Guest::new();
    let offer = InitInShort {
        major: 7,
        minor: 31,
        max_readahead: 4096,
        flags: 0,
    };

    let answer: InitOut = guest.ask(Opcode::Init, 0, &[offer.as_bytes()]).unwrap();

    assert_eq!(
        (answer.major, answer.max_readahead, answer.flags),
        (7, 4096, 0)
    );
}

#[test]
fn forgetting_more_than_was_given_forgets_it_all_and_nothing_else() {
    let guest = Guest::prepared(Default::default(), |share| {
        std::fs::write(share.join("file"), "").unwrap()
    });
    let node = guest.node("file");

    guest.forget(node, u64::MAX);
    guest.forget(node, 1);
    guest.forget(ROOT, u64::MAX);

    assert_eq!(guest.attributes(node), Err(libc::EBADF));
    assert!(guest.attributes(ROOT).is_ok());
}

#[test]
fn a_node_stays_until_every_reference_was_given_back() {
    let guest = Guest::prepared(Default::default(), |share| {
        std::fs::write(share.join("file"), "").unwrap()
    });
    let node = guest.node("file");
    assert_eq!(guest.node("file"), node);

    guest.forget(node, 1);
    assert!(guest.attributes(node).is_ok());

    guest.forget(node, 1);
    assert_eq!(guest.attributes(node), Err(libc::EBADF));
}

#[test]
fn several_nodes_are_forgotten_at_once() {
    let guest = Guest::prepared(Default::default(), |share| {
        std::fs::write(share.join("a"), "").unwrap();
        std::fs::write(share.join("b"), "").unwrap();
    });
    let (a, b) = (guest.node("a"), guest.node("b"));
    let header = InHeader {
        len: 80,
        opcode: Opcode::BatchForget as u32,
        ..InHeader::default()
    };
    let one = |nodeid| ForgetOne { nodeid, nlookup: 1 };
    let list = [
        BatchForgetIn { count: 2, dummy: 0 }.as_bytes(),
        one(a).as_bytes(),
        one(b).as_bytes(),
    ]
    .concat();

    guest.bytes(&[header.as_bytes(), &list].concat(), 0);

    assert_eq!(
        (guest.attributes(a), guest.attributes(b)),
        (Err(libc::EBADF), Err(libc::EBADF))
    );
}

#[test]
fn a_name_is_answered_with_the_attributes_behind_it() {
    let guest = Guest::new();
    std::fs::write(guest.share().join("file"), "content").unwrap();

    let entry: EntryOut = guest.ask(Opcode::Lookup, ROOT, &[&c("file")]).unwrap();

    assert_eq!(
        (entry.attr.size, entry.attr.mode & libc::S_IFMT),
        (7, libc::S_IFREG)
    );
    assert_eq!((entry.entry_valid, entry.attr_valid), (1, 1));
}
