// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files as disks.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rstest::rstest;
use tempfile::NamedTempFile;

use super::*;
use crate::testing::{chain, written};

const SIZE: u64 = 1 << 20;

/// A file of ones.
fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    std::fs::write(&image, vec![1; SIZE as usize]).unwrap();
    image
}

fn open(path: &Path, write: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(write).open(path).unwrap()
}

fn disk(image: &NamedTempFile) -> DiskFile {
    DiskFile::new(open(image.path(), true), false).unwrap()
}

#[test]
fn file_has_its_size_and_its_file_systems_block() {
    let image = image();

    let disk = disk(&image).properties();

    assert_eq!(
        (disk.size, disk.block_size, disk.read_only),
        (SIZE, 512, false)
    );
    assert!(disk.physical_block_size >= 512, "{disk:?}");
}

#[rstest]
#[case::sectors(512, 512)]
#[case::pages(4096, 4096)]
#[case::network(1 << 20, 4096)]
#[case::more_than_a_disk_can_tell(u64::MAX, 4096)]
fn unit_of_a_file_is_a_page_at_most(#[case] preferred: u64, #[case] expected: u32) {
    assert_eq!(unit(preferred), expected);
}

#[rstest]
#[case::empty(0)]
#[case::less_than_a_sector(511)]
#[case::part_of_a_sector(1025)]
fn size_that_is_not_in_sectors_is_refused(#[case] size: u64) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();

    let error = DiskFile::new(file, false).unwrap_err();

    assert!(matches!(error, DiskError::Size(found) if found == size));
}

#[rstest]
#[case::directory(File::open("/").unwrap(), "a directory")]
#[case::character_device(File::open("/dev/null").unwrap(), "a character device")]
#[case::pipe(File::from(OwnedFd::from(io::pipe().unwrap().0)), "a pipe")]
#[case::socket(File::from(OwnedFd::from(UnixStream::pair().unwrap().0)), "a socket")]
fn what_is_no_disk_is_refused(#[case] file: File, #[case] expected: &str) {
    let error = DiskFile::new(file, true).unwrap_err();

    assert!(matches!(error, DiskError::Kind(found) if found == expected));
}

#[rstest]
#[case::for_reading(libc::O_RDONLY, false, false)]
#[case::for_reading_is_enough(libc::O_RDONLY, true, true)]
#[case::for_writing(libc::O_WRONLY, false, false)]
#[case::for_writing_cannot_be_read(libc::O_WRONLY, true, false)]
#[case::for_appending(libc::O_RDWR | libc::O_APPEND, false, false)]
#[case::for_appending_nothing(libc::O_RDWR | libc::O_APPEND, true, true)]
#[case::by_its_path(libc::O_PATH, true, false)]
#[case::for_both(libc::O_RDWR, false, true)]
fn file_has_to_be_open_for_what_is_done_with_it(
    #[case] flags: i32,
    #[case] read_only: bool,
    #[case] possible: bool,
) {
    let image = image();
    let flags = OFlags::from_bits_retain(flags.unsigned_abs());
    let file = rustix::fs::open(image.path(), flags, rustix::fs::Mode::empty()).unwrap();

    let made = DiskFile::new(file.into(), read_only);

    match possible {
        true => drop(made.unwrap()),
        false => assert!(matches!(made.unwrap_err(), DiskError::Opened { .. })),
    }
}

#[rstest]
#[case::two_writers(false, false, false)]
#[case::reader_while_written(false, true, false)]
#[case::writer_while_read(true, false, false)]
#[case::two_readers(true, true, true)]
fn image_in_use_is_refused_if_one_of_both_writes(
    #[case] first: bool,
    #[case] second: bool,
    #[case] possible: bool,
) {
    let image = image();
    let _user = DiskFile::new(open(image.path(), true), first).unwrap();

    let made = DiskFile::new(open(image.path(), true), second);

    match possible {
        true => drop(made.unwrap()),
        false => assert!(matches!(made.unwrap_err(), DiskError::InUse { .. })),
    }
}

#[test]
fn image_is_free_when_its_user_is_gone() {
    let image = image();
    drop(disk(&image));

    let made = DiskFile::new(open(image.path(), true), false);

    assert!(made.is_ok());
}

#[test]
fn bytes_go_where_they_belong() {
    let image = image();
    let disk = disk(&image);
    let write = chain(&[&[2; 300], &[3; 212]], &[]);
    let read = chain(&[], &[100, 924]);

    disk.write(&mut write.readable(), 1024, 512).unwrap();
    disk.read(&mut read.writable(), 512, 1024).unwrap();

    let expected = [&[1; 512][..], &[2; 300], &[3; 212]].concat();
    assert_eq!(written(&read, 1024), expected);
    assert_eq!(std::fs::read(&image).unwrap()[512..1536], expected);
}

/// A guest writes what it likes to its first sector, another format's header as well.
#[rstest]
#[case::qcow2(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x01\0\0\0\0\x0b\0\0\0\x10\0\0\0\0\0\x10\0\0")]
#[case::vmdk(b"KDMV\x03\0\0\0")]
#[case::vhdx(b"vhdxfile")]
#[case::luks(b"LUKS\xba\xbe\0\x02")]
fn header_of_another_format_changes_nothing(#[case] header: &[u8]) {
    let image = image();
    let write = chain(&[header, &vec![0; 512 - header.len()]], &[]);
    disk(&image).write(&mut write.readable(), 0, 512).unwrap();

    let disk = disk(&image);

    let read = chain(&[], &[header.len() as u32]);
    disk.read(&mut read.writable(), 0, header.len()).unwrap();
    assert_eq!(written(&read, header.len()), header);
    assert_eq!(disk.properties().size, SIZE);
}

#[test]
fn file_that_became_shorter_is_an_error_where_it_ends() {
    let image = image();
    let disk = disk(&image);
    image.as_file().set_len(1000).unwrap();
    let chain = chain(&[], &[1024]);

    let error = disk.read(&mut chain.writable(), 0, 1024).unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(written(&chain, 1000), [1; 1000]);
}

#[rstest]
#[case::discard(|disk: &DiskFile| disk.discard(4096, 65536))]
#[case::zeroes(|disk: &DiskFile| disk.write_zeroes(4096, 65536, false))]
#[case::zeroes_unmapped(|disk: &DiskFile| disk.write_zeroes(4096, 65536, true))]
#[case::zeroes_one_by_one(|disk: &DiskFile| disk.zero_one_by_one(4096, 65536))]
#[case::more_than_a_block_of_zeroes(|disk: &DiskFile| disk.zero_one_by_one(4096, 65536 + 512)
    .and_then(|()| disk.write(&mut chain(&[&[1; 512]], &[]).readable(), 4096 + 65536, 512)))]
fn range_reads_as_zeroes_and_its_neighbours_as_before(
    #[case] change: impl Fn(&DiskFile) -> io::Result<()>,
) {
    let image = image();

    change(&disk(&image)).unwrap();

    let mut expected = vec![1; SIZE as usize];
    expected[4096..4096 + 65536].fill(0);
    assert!(std::fs::read(&image).unwrap() == expected);
}

#[test]
fn discarded_range_is_given_back_to_the_host() {
    let image = image();
    let before = image.as_file().metadata().unwrap().blocks();

    disk(&image).discard(0, SIZE / 2).unwrap();

    let after = image.as_file().metadata().unwrap();
    assert!(
        after.blocks() <= before / 2 + 8,
        "{} {before}",
        after.blocks()
    );
    assert_eq!(after.len(), SIZE);
}

#[rstest]
#[case::discard(|disk: &DiskFile| disk.discard(512, 0))]
#[case::zeroes(|disk: &DiskFile| disk.write_zeroes(512, 0, true))]
fn empty_range_is_no_error(#[case] change: impl Fn(&DiskFile) -> io::Result<()>) {
    let image = image();

    change(&disk(&image)).unwrap();

    assert!(std::fs::read(&image).unwrap() == vec![1; SIZE as usize]);
}

#[test]
fn flush_of_a_file_is_done() {
    disk(&image()).flush().unwrap();
}

#[test]
fn read_only_descriptor_is_not_written() {
    let image = image();
    let disk = DiskFile::new(open(image.path(), false), true).unwrap();

    let error = disk.write_zeroes(0, 512, false).unwrap_err();

    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    assert!(std::fs::read(&image).unwrap() == vec![1; SIZE as usize]);
}

#[test]
fn short_and_interrupted_steps_go_on_where_they_stopped() {
    let mut outcomes = vec![Ok(4), Err(io::ErrorKind::Interrupted.into()), Ok(1), Ok(3)];
    let mut asked = Vec::new();

    all(8, io::ErrorKind::UnexpectedEof, |done, left| {
        asked.push((done, left));
        outcomes.remove(0)
    })
    .unwrap();

    assert_eq!(asked, [(0, 8), (4, 4), (4, 4), (5, 3)]);
}

#[rstest]
#[case::end(Ok(0), io::ErrorKind::UnexpectedEof)]
#[case::error(Err(io::ErrorKind::StorageFull.into()), io::ErrorKind::StorageFull)]
fn step_that_does_nothing_is_the_end(
    #[case] outcome: io::Result<usize>,
    #[case] expected: io::ErrorKind,
) {
    let mut outcome = Some(outcome);

    let error = all(8, io::ErrorKind::UnexpectedEof, |_, _| {
        outcome.take().unwrap()
    });

    assert_eq!(error.unwrap_err().kind(), expected);
}
