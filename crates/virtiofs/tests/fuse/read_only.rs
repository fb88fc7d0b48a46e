// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A read-only share, whatever the guest thinks how it has mounted it.

use std::fs;

use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::{Opcode, flags};
use coracle_virtiofs::passthrough::FsConfig;
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, ROOT, c, mode, size};

fn guest() -> (Guest, u64) {
    let guest = Guest::prepared(
        FsConfig {
            read_only: true,
            ..FsConfig::default()
        },
        |share| {
            fs::write(share.join("file"), "content").unwrap();
            fs::create_dir(share.join("directory")).unwrap();
        },
    );
    let node = guest.node("file");
    (guest, node)
}

/// What the share looks like, times of access aside.
fn state(guest: &Guest) -> Vec<(String, Vec<u8>, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mut all: Vec<_> = fs::read_dir(guest.share())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (
                name,
                fs::read(entry.path()).unwrap_or_default(),
                entry.metadata().unwrap().mode(),
            )
        })
        .collect();
    all.sort();
    all
}

type Attempt = fn(&Guest, u64) -> Result<(), i32>;

#[rstest]
#[case::mkdir(|guest: &Guest, _: u64| guest.mkdir(ROOT, "new", 0o755).map(drop))]
#[case::mknod(|guest: &Guest, _: u64| guest.mknod(ROOT, "new", libc::S_IFREG, 0).map(drop))]
#[case::symlink(|guest: &Guest, _: u64| guest.symlink(ROOT, "new", "target").map(drop))]
#[case::link(|guest: &Guest, node: u64| guest.link(node, ROOT, "new").map(drop))]
#[case::create(|guest: &Guest, _: u64| guest.create(ROOT, "new", 0o600, libc::O_RDWR).map(drop))]
#[case::create_existing(|guest: &Guest, _: u64| guest.create(ROOT, "file", 0o600, libc::O_RDONLY).map(drop))]
#[case::tmpfile(|guest: &Guest, _: u64| {
    guest.call(Opcode::TmpFile, ROOT, &[CreateIn::default().as_bytes(), &c("x")]).map(drop)
})]
#[case::unlink(|guest: &Guest, _: u64| guest.unlink(ROOT, "file"))]
#[case::rmdir(|guest: &Guest, _: u64| guest.tell(Opcode::Rmdir, ROOT, &[&c("directory")]))]
#[case::rename(|guest: &Guest, _: u64| guest.rename(ROOT, "file", ROOT, "new", 0))]
#[case::open_to_write(|guest: &Guest, node: u64| guest.open(node, libc::O_WRONLY).map(drop))]
#[case::open_to_read_and_write(|guest: &Guest, node: u64| guest.open(node, libc::O_RDWR).map(drop))]
#[case::open_to_truncate(|guest: &Guest, node: u64| guest.open(node, libc::O_RDONLY | libc::O_TRUNC).map(drop))]
#[case::write(|guest: &Guest, node: u64| {
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    guest.write(node, fh, 0, b"x").map(drop)
})]
#[case::size(|guest: &Guest, node: u64| guest.set_attributes(node, size(0)).map(drop))]
#[case::mode(|guest: &Guest, node: u64| guest.set_attributes(node, mode(0o777)).map(drop))]
#[case::owner(|guest: &Guest, node: u64| {
    let change = SetAttrIn { valid: flags::setattr::UID, uid: 1, ..SetAttrIn::default() };
    guest.set_attributes(node, change).map(drop)
})]
#[case::times(|guest: &Guest, node: u64| {
    let change = SetAttrIn { valid: flags::setattr::MTIME, ..SetAttrIn::default() };
    guest.set_attributes(node, change).map(drop)
})]
#[case::setxattr(|guest: &Guest, node: u64| guest.setxattr(node, "user.name", b"value"))]
#[case::removexattr(|guest: &Guest, node: u64| guest.tell(Opcode::RemoveXattr, node, &[&c("user.name")]))]
#[case::fallocate(|guest: &Guest, node: u64| {
    let arg = FallocateIn { fh: 1, length: 100, ..FallocateIn::default() };
    guest.tell(Opcode::Fallocate, node, &[arg.as_bytes()])
})]
#[case::copy_file_range(|guest: &Guest, node: u64| {
    guest.call(Opcode::CopyFileRange, node, &[CopyFileRangeIn::default().as_bytes()]).map(drop)
})]
fn whatever_would_change_something_is_refused(#[case] attempt: Attempt) {
    let (guest, node) = guest();
    let before = state(&guest);

    assert_eq!(attempt(&guest, node), Err(libc::EROFS));
    assert_eq!(state(&guest), before);
}

#[test]
fn whatever_only_looks_works() {
    let (guest, node) = guest();
    let (file, directory) = (
        guest.open(node, libc::O_RDONLY).unwrap(),
        guest.opendir(ROOT).unwrap(),
    );

    assert_eq!(guest.read(node, file, 0, 10).unwrap(), b"content");
    assert_eq!(
        guest.readdir(ROOT, directory, 0, 4096, true).unwrap().len(),
        4
    );
    assert_eq!(guest.attributes(node).unwrap().size, 7);
    assert!(guest.listxattr(node, 100).is_ok());
}
