// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names that are no names, in every request that has one; and what proper names do.

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, ROOT, c};

type Request = fn(&str) -> (Opcode, Vec<u8>);

const LOOKUP: Request = |name| (Opcode::Lookup, c(name));
const UNLINK: Request = |name| (Opcode::Unlink, c(name));
const RMDIR: Request = |name| (Opcode::Rmdir, c(name));
const SYMLINK: Request = |name| (Opcode::Symlink, [c(name), c("target")].concat());
const MKDIR: Request = |name| {
    (
        Opcode::Mkdir,
        [MkdirIn::default().as_bytes(), &c(name)].concat(),
    )
};
const MKNOD: Request = |name| {
    let arg = MknodIn {
        mode: libc::S_IFREG,
        ..MknodIn::default()
    };
    (Opcode::Mknod, [arg.as_bytes(), &c(name)].concat())
};
const CREATE: Request = |name| {
    let arg = CreateIn {
        flags: libc::O_RDWR.cast_unsigned(),
        ..CreateIn::default()
    };
    (Opcode::Create, [arg.as_bytes(), &c(name)].concat())
};
const LINK: Request = |name| {
    (
        Opcode::Link,
        [LinkIn { oldnodeid: 2 }.as_bytes(), &c(name)].concat(),
    )
};
const RENAME_FROM: Request = |name| {
    (
        Opcode::Rename,
        [RenameIn { newdir: ROOT }.as_bytes(), &c(name), &c("new")].concat(),
    )
};
const RENAME_TO: Request = |name| {
    (
        Opcode::Rename,
        [RenameIn { newdir: ROOT }.as_bytes(), &c("file"), &c(name)].concat(),
    )
};
const RENAME2_TO: Request = |name| {
    let arg = Rename2In {
        newdir: ROOT,
        ..Rename2In::default()
    };
    (
        Opcode::Rename2,
        [arg.as_bytes(), &c("file"), &c(name)].concat(),
    )
};

#[rstest]
fn hostile_names_are_refused_everywhere(
    #[values(
        LOOKUP,
        UNLINK,
        RMDIR,
        SYMLINK,
        MKDIR,
        MKNOD,
        CREATE,
        LINK,
        RENAME_FROM,
        RENAME_TO,
        RENAME2_TO
    )]
    request: Request,
    #[values("", ".", "..", "/", "/etc", "../secret", "a/b", "file/", "./file")] name: &str,
) {
    let guest = Guest::prepared(Default::default(), |share| {
        std::fs::write(share.join("file"), "").unwrap()
    });
    assert_eq!(guest.node("file"), 2);
    let (opcode, body) = request(name);

    let answer = guest.call(opcode, ROOT, &[&body]);

    assert_eq!(answer, Err(libc::EINVAL));
    assert_eq!(std::fs::read(guest.secret()).unwrap(), b"of the host");
    assert_eq!(std::fs::read_dir(guest.share()).unwrap().count(), 1);
}

#[rstest]
fn names_that_are_too_long_are_refused_everywhere(
    #[values(
        LOOKUP,
        UNLINK,
        RMDIR,
        SYMLINK,
        MKDIR,
        MKNOD,
        CREATE,
        RENAME_FROM,
        RENAME_TO
    )]
    request: Request,
) {
    let guest = Guest::new();
    let (opcode, body) = request(&"n".repeat(256));

    assert_eq!(guest.call(opcode, ROOT, &[&body]), Err(libc::ENAMETOOLONG));
}

#[test]
fn the_longest_name_can_be_made_and_found() {
    let guest = Guest::new();
    let name = "n".repeat(255);

    let made = guest.mkdir(ROOT, &name, 0o755).unwrap();

    assert_eq!(guest.lookup(ROOT, &name).unwrap().nodeid, made.nodeid);
}

#[test]
fn what_was_made_can_be_removed() {
    let guest = Guest::new();
    guest.mkdir(ROOT, "directory", 0o755).unwrap();
    guest.mknod(ROOT, "file", libc::S_IFREG | 0o644, 0).unwrap();

    assert_eq!(guest.unlink(ROOT, "directory"), Err(libc::EISDIR));
    assert_eq!(
        guest.tell(Opcode::Rmdir, ROOT, &[&c("file")]),
        Err(libc::ENOTDIR)
    );
    guest.unlink(ROOT, "file").unwrap();
    guest.tell(Opcode::Rmdir, ROOT, &[&c("directory")]).unwrap();

    assert_eq!(guest.lookup(ROOT, "file").unwrap_err(), libc::ENOENT);
    assert_eq!(std::fs::read_dir(guest.share()).unwrap().count(), 0);
}

#[test]
fn a_mode_arrives_as_the_guest_sends_it() {
    let guest = Guest::new();

    let directory = guest.mkdir(ROOT, "directory", 0o1777).unwrap();
    let file = guest.mknod(ROOT, "file", libc::S_IFREG | 0o666, 0).unwrap();
    let (created, _) = guest.create(ROOT, "created", 0o602, libc::O_RDWR).unwrap();

    assert_eq!(directory.attr.mode, libc::S_IFDIR | 0o1777);
    assert_eq!(file.attr.mode, libc::S_IFREG | 0o666);
    assert_eq!(created.attr.mode, libc::S_IFREG | 0o602);
}

#[test]
fn a_symbolic_link_is_read_and_not_followed() {
    let guest = Guest::new();
    let made = guest.symlink(ROOT, "link", "../secret").unwrap();

    let target = guest.call(Opcode::ReadLink, made.nodeid, &[]).unwrap();

    assert_eq!(target, b"../secret");
    assert_eq!(made.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.call(Opcode::ReadLink, ROOT, &[]), Err(libc::EINVAL));
}

#[test]
fn a_hard_link_is_the_same_node() {
    let guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();

    let link = guest.link(file.nodeid, ROOT, "link").unwrap();

    assert_eq!((link.nodeid, link.attr.nlink), (file.nodeid, 2));
}

#[test]
fn a_hard_link_to_a_symbolic_link_is_one_to_the_link() {
    let guest = Guest::new();
    let symlink = guest.symlink(ROOT, "symlink", "../secret").unwrap();

    let link = guest.link(symlink.nodeid, ROOT, "link").unwrap();

    assert_eq!(link.nodeid, symlink.nodeid);
    assert_eq!(
        std::fs::read_link(guest.share().join("link"))
            .unwrap()
            .to_str(),
        Some("../secret")
    );
}

#[rstest]
#[case::replaces(0, Ok(()), ("", "old"))]
#[case::does_not_replace(libc::RENAME_NOREPLACE, Err(libc::EEXIST), ("old", "new"))]
#[case::exchanges(libc::RENAME_EXCHANGE, Ok(()), ("new", "old"))]
#[case::unknown(1 << 30, Err(libc::EINVAL), ("old", "new"))]
fn renaming_heeds_its_flags(
    #[case] flags: u32,
    #[case] answer: Result<(), i32>,
    #[case] contents: (&str, &str),
) {
    let guest = Guest::new();
    std::fs::write(guest.share().join("old"), "old").unwrap();
    std::fs::write(guest.share().join("new"), "new").unwrap();

    assert_eq!(guest.rename(ROOT, "old", ROOT, "new", flags), answer);

    let content = |name| std::fs::read_to_string(guest.share().join(name)).unwrap_or_default();
    assert_eq!((content("old").as_str(), content("new").as_str()), contents);
}

#[test]
fn a_file_that_was_removed_lives_on_while_it_is_open() {
    let guest = Guest::new();
    let (file, opened) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    guest.write(file.nodeid, opened.fh, 0, b"alive").unwrap();

    guest.unlink(ROOT, "file").unwrap();

    assert_eq!(guest.read(file.nodeid, opened.fh, 0, 10).unwrap(), b"alive");
    assert_eq!(guest.attributes(file.nodeid).unwrap().nlink, 0);
    // By its number alone, without a name.
    let again = guest.open(file.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file.nodeid, again, 0, 10).unwrap(), b"alive");
}

#[test]
fn a_file_without_a_name_can_get_one() {
    let guest = Guest::new();
    let arg = CreateIn {
        flags: libc::O_RDWR.cast_unsigned(),
        mode: 0o640,
        ..CreateIn::default()
    };

    let reply = guest
        .call(Opcode::TmpFile, ROOT, &[arg.as_bytes(), &c("#1")])
        .unwrap();
    let node = u64::from_le_bytes(reply[..8].try_into().unwrap());

    assert_eq!(guest.attributes(node).unwrap().nlink, 0);
    assert_eq!(guest.link(node, ROOT, "named").unwrap().nodeid, node);
    assert_eq!(guest.attributes(node).unwrap().mode, libc::S_IFREG | 0o640);
}
