// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in files.

use std::fs;

use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::{Opcode, flags};
use coracle_virtiofs::passthrough::{CachePolicy, FsConfig};
use rstest::rstest;
use zerocopy::IntoBytes;

use crate::guest::{Guest, ROOT, size};

fn guest_with(content: &str) -> (Guest, u64) {
    let guest = Guest::prepared(Default::default(), |share| {
        fs::write(share.join("file"), content).unwrap()
    });
    let node = guest.node("file");
    (guest, node)
}

#[test]
fn what_is_written_is_read_by_guest_and_host() {
    let guest = Guest::new();
    let (file, opened) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();

    assert_eq!(guest.write(file.nodeid, opened.fh, 3, b"data"), Ok(4));

    assert_eq!(
        guest.read(file.nodeid, opened.fh, 0, 100).unwrap(),
        b"\0\0\0data"
    );
    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"\0\0\0data");
}

#[test]
fn a_megabyte_goes_through_at_once() {
    let guest = Guest::new();
    let (file, opened) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    let data: Vec<u8> = (0..1 << 20)
        .map(|index: u32| index.to_le_bytes()[1])
        .collect();

    assert_eq!(guest.write(file.nodeid, opened.fh, 0, &data), Ok(1 << 20));

    assert!(guest.read(file.nodeid, opened.fh, 0, 1 << 20).unwrap() == data);
}

#[test]
fn more_than_was_negotiated_is_refused() {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR).unwrap();

    assert_eq!(guest.read(node, fh, 0, (1 << 20) + 1), Err(libc::EINVAL));
    assert_eq!(
        guest.write(node, fh, 0, &vec![0; (1 << 20) + 1]),
        Err(libc::EINVAL)
    );
}

#[rstest]
#[case::less_than_it_says(5)]
#[case::more_than_it_says(3)]
fn a_write_that_lies_about_its_length_is_refused(#[case] size: u32) {
    let (guest, node) = guest_with("");
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let arg = WriteIn {
        fh,
        size,
        ..WriteIn::default()
    };

    assert_eq!(
        guest.call(Opcode::Write, node, &[arg.as_bytes(), b"data"]),
        Err(libc::EINVAL)
    );
    assert_eq!(guest.attributes(node).unwrap().size, 0);
}

#[rstest]
#[case::at_the_end(4, b"")]
#[case::past_the_end(100, b"")]
#[case::across_the_end(2, b"ta")]
fn reading_ends_with_the_file(#[case] offset: u64, #[case] expected: &[u8]) {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDONLY).unwrap();

    assert_eq!(guest.read(node, fh, offset, 100).unwrap(), expected);
}

#[test]
fn an_offset_that_no_file_has_is_refused() {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR).unwrap();

    assert_eq!(guest.read(node, fh, u64::MAX, 1), Err(libc::EINVAL));
    assert_eq!(guest.write(node, fh, u64::MAX, b"x"), Err(libc::EINVAL));
    assert_eq!(
        guest.set_attributes(node, size(u64::MAX)),
        Err(libc::EINVAL)
    );
}

#[test]
fn a_handle_does_what_it_was_opened_for() {
    let (guest, node) = guest_with("data");
    let reader = guest.open(node, libc::O_RDONLY).unwrap();
    let writer = guest.open(node, libc::O_WRONLY).unwrap();

    assert_eq!(guest.write(node, reader, 0, b"x"), Err(libc::EBADF));
    assert_eq!(guest.read(node, writer, 0, 1), Err(libc::EBADF));
}

#[test]
fn a_handle_belongs_to_one_node_and_ends_with_its_release() {
    let (guest, node) = guest_with("data");
    let other = guest
        .mknod(ROOT, "other", libc::S_IFREG | 0o600, 0)
        .unwrap()
        .nodeid;
    let fh = guest.open(node, libc::O_RDONLY).unwrap();

    assert_eq!(guest.read(other, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.release(other, fh), Err(libc::EBADF));
    guest.release(node, fh).unwrap();
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.release(node, fh), Err(libc::EBADF));
    assert_ne!(guest.open(node, libc::O_RDONLY).unwrap(), fh);
}

#[test]
fn appending_goes_to_the_end_wherever_the_guest_thinks_it_is() {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    let arg = WriteIn {
        fh,
        flags: libc::O_APPEND.cast_unsigned(),
        ..WriteIn::default()
    };

    guest.write_with(node, arg, b" and more").unwrap();

    assert_eq!(
        fs::read(guest.share().join("file")).unwrap(),
        b"data and more"
    );
}

#[test]
fn a_page_of_the_guests_cache_goes_where_it_belongs_even_by_an_appending_handle() {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR | libc::O_APPEND).unwrap();
    let arg = WriteIn {
        fh,
        flags: libc::O_APPEND.cast_unsigned(),
        write_flags: flags::write::CACHE,
        ..WriteIn::default()
    };

    guest.write_with(node, arg, b"DATA").unwrap();

    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"DATA");
}

#[test]
fn opening_truncates_where_the_guest_says_so() {
    let (guest, node) = guest_with("data");

    guest.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();

    assert_eq!(guest.attributes(node).unwrap().size, 0);
}

#[test]
fn creating_what_is_there_opens_it_unless_it_must_be_new() {
    let (guest, node) = guest_with("data");

    let (entry, opened) = guest
        .create(ROOT, "file", 0o600, libc::O_RDWR | libc::O_CREAT)
        .unwrap();
    let exclusive = guest.create(
        ROOT,
        "file",
        0o600,
        libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
    );

    assert_eq!(entry.nodeid, node);
    assert_eq!(guest.read(node, opened.fh, 0, 10).unwrap(), b"data");
    assert_eq!(exclusive.unwrap_err(), libc::EEXIST);
}

#[rstest]
#[case::direct(libc::O_DIRECT)]
#[case::no_follow(libc::O_NOFOLLOW)]
#[case::path(libc::O_PATH)]
#[case::unnamed(libc::O_TMPFILE & !libc::O_DIRECTORY)]
#[case::create(libc::O_CREAT | libc::O_EXCL)]
fn flags_that_mean_nothing_to_an_open_file_do_no_harm(#[case] flags: i32) {
    let (guest, node) = guest_with("data");

    let fh = guest.open(node, libc::O_RDONLY | flags).unwrap();

    // One byte into an odd place: nothing is aligned.
    assert_eq!(guest.read(node, fh, 1, 1).unwrap(), b"a");
}

#[test]
fn an_access_mode_that_is_none_is_refused() {
    let (guest, node) = guest_with("data");

    assert_eq!(guest.open(node, libc::O_ACCMODE), Err(libc::EINVAL));
}

#[rstest]
#[case::by_node(false)]
#[case::by_handle(true)]
fn a_file_changes_its_size(#[case] by_handle: bool) {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let mut change = size(2);
    if by_handle {
        change = SetAttrIn {
            valid: change.valid | flags::setattr::FH,
            fh,
            ..change
        };
    }

    assert_eq!(guest.set_attributes(node, change).unwrap().size, 2);
    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"da");
}

#[rstest]
#[case::whole(0)]
#[case::data_only(1)]
fn files_and_directories_are_synced(#[case] fsync_flags: u32) {
    let (guest, node) = guest_with("data");
    let (file, directory) = (
        guest.open(node, libc::O_RDWR).unwrap(),
        guest.opendir(ROOT).unwrap(),
    );
    let arg = |fh| FsyncIn {
        fh,
        fsync_flags,
        padding: 0,
    };

    assert_eq!(
        guest.tell(Opcode::Fsync, node, &[arg(file).as_bytes()]),
        Ok(())
    );
    assert_eq!(
        guest.tell(Opcode::FsyncDir, ROOT, &[arg(directory).as_bytes()]),
        Ok(())
    );
    assert_eq!(
        guest.tell(Opcode::Fsync, ROOT, &[arg(directory).as_bytes()]),
        Err(libc::EBADF)
    );
    assert_eq!(
        guest.tell(Opcode::FsyncDir, node, &[arg(file).as_bytes()]),
        Err(libc::EBADF)
    );
}

#[test]
fn the_file_system_is_synced_and_says_how_large_it_is() {
    let guest = Guest::new();

    assert_eq!(guest.tell(Opcode::SyncFs, ROOT, &[&[0; 8]]), Ok(()));
    let stat: StatfsOut = guest.ask(Opcode::StatFs, ROOT, &[]).unwrap();

    assert_eq!(stat.namelen, 255);
    assert!(stat.blocks > 0 && stat.bsize > 0);
}

#[test]
fn a_handle_is_flushed_as_often_as_the_guest_likes() {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let arg = FlushIn {
        fh,
        ..FlushIn::default()
    };

    assert_eq!(guest.tell(Opcode::Flush, node, &[arg.as_bytes()]), Ok(()));
    assert_eq!(guest.tell(Opcode::Flush, node, &[arg.as_bytes()]), Ok(()));
    assert_eq!(guest.read(node, fh, 0, 4).unwrap(), b"data");
}

#[rstest]
#[case::grow(0, 8, Ok(8))]
#[case::keep_size(libc::FALLOC_FL_KEEP_SIZE, 8, Ok(4))]
#[case::nothing(0, 0, Err(libc::EINVAL))]
#[case::unknown(1 << 20, 8, Err(libc::EOPNOTSUPP))]
fn room_is_reserved(#[case] mode: i32, #[case] length: u64, #[case] expected: Result<u64, i32>) {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let arg = FallocateIn {
        fh,
        length,
        mode: mode.cast_unsigned(),
        ..FallocateIn::default()
    };

    let answer = guest.tell(Opcode::Fallocate, node, &[arg.as_bytes()]);

    assert_eq!(
        answer.map(|()| guest.attributes(node).unwrap().size),
        expected
    );
}

#[rstest]
#[case::data(libc::SEEK_DATA, 1, Ok(1))]
#[case::hole(libc::SEEK_HOLE, 1, Ok(4))]
#[case::past_the_end(libc::SEEK_DATA, 10, Err(libc::ENXIO))]
#[case::the_guests_own_business(libc::SEEK_CUR, 1, Err(libc::EINVAL))]
fn data_and_holes_are_found(
    #[case] whence: i32,
    #[case] offset: u64,
    #[case] expected: Result<u64, i32>,
) {
    let (guest, node) = guest_with("data");
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    let arg = LseekIn {
        fh,
        offset,
        whence: whence.cast_unsigned(),
        padding: 0,
    };

    let answer: Result<LseekOut, _> = guest.ask(Opcode::Lseek, node, &[arg.as_bytes()]);

    assert_eq!(answer.map(|out| out.offset), expected);
}

#[test]
fn a_range_is_copied_without_the_guest() {
    let (guest, node) = guest_with("0123456789");
    let (copy, opened) = guest.create(ROOT, "copy", 0o600, libc::O_RDWR).unwrap();
    let fh_in = guest.open(node, libc::O_RDONLY).unwrap();
    let arg = CopyFileRangeIn {
        fh_in,
        off_in: 2,
        nodeid_out: copy.nodeid,
        fh_out: opened.fh,
        off_out: 1,
        len: 3,
        flags: 0,
    };

    let out: WriteOut = guest
        .ask(Opcode::CopyFileRange, node, &[arg.as_bytes()])
        .unwrap();

    assert_eq!(out.size, 3);
    assert_eq!(fs::read(guest.share().join("copy")).unwrap(), b"\x00234");
}

#[rstest]
#[case::never(CachePolicy::Never, flags::open_out::DIRECT_IO, 0)]
#[case::auto(CachePolicy::Auto, 0, 1)]
#[case::always(CachePolicy::Always, flags::open_out::KEEP_CACHE, 86_400)]
fn the_policy_says_what_the_guest_may_keep(
    #[case] cache: CachePolicy,
    #[case] open_flags: u32,
    #[case] seconds: u64,
) {
    let guest = Guest::with(FsConfig {
        cache,
        ..FsConfig::default()
    });

    let (entry, opened) = guest.create(ROOT, "file", 0o600, libc::O_RDWR).unwrap();
    let reader = guest.open_with(entry.nodeid, libc::O_RDONLY, 0).unwrap();

    assert_eq!((entry.entry_valid, entry.attr_valid), (seconds, seconds));
    assert_eq!(opened.open_flags, open_flags);
    assert_eq!(reader.open_flags, open_flags | flags::open_out::NOFLUSH);
}
