// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes in and out of a chain's buffers.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use coracle_memory::GuestAddress;
use coracle_virtio::testing::{self, Driver, Used};
use coracle_virtio::{Chain, Queue, TransferError, features};
use proptest::prelude::*;

/// A driver with one chain of these buffers, and the chain as the device sees it.
struct Case {
    driver: Driver,
    queue: Queue,
    chain: Chain,
}

fn case(readable: &[&[u8]], writable: &[u32]) -> Case {
    let memory = testing::memory(1 << 20);
    let mut driver = Driver::new(&memory, GuestAddress(0), 1 << 20, 64).unwrap();
    let mut queue = driver.queue(features::RING).unwrap();
    let mut chain = Chain::new();
    driver.add(readable, writable).unwrap();
    assert!(queue.pop(&mut chain).unwrap());
    Case {
        driver,
        queue,
        chain,
    }
}

impl Case {
    /// Returns the chain with `len` bytes written, and gives what the driver finds.
    fn used(mut self, len: u32) -> Used {
        self.queue.add_used(self.chain.head(), len).unwrap();
        self.driver.used().unwrap().unwrap()
    }
}

/// An empty file in memory.
fn file() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("test", flags).unwrap().into()
}

fn lens(ranges: &[libc::iovec]) -> Vec<usize> {
    ranges.iter().map(|range| range.iov_len).collect()
}

#[test]
fn values_are_read_across_buffers() {
    let case = case(&[&[1, 2, 3], &[4, 5, 6, 7, 8]], &[]);
    let mut reader = case.chain.readable();

    assert_eq!(reader.read_obj(), Ok(0x0403_0201u32));
    assert_eq!(reader.consumed(), 4);
    assert_eq!(reader.read_obj(), Ok([5u8, 6]));
    assert_eq!(reader.remaining(), 2);
}

#[test]
fn a_read_of_too_much_reads_nothing() {
    let case = case(&[&[1, 2, 3]], &[]);
    let mut reader = case.chain.readable();

    let result = reader.read_obj::<u32>();

    assert_eq!(
        result,
        Err(TransferError {
            wanted: 4,
            remaining: 3
        })
    );
    assert_eq!(
        reader.skip(4),
        Err(TransferError {
            wanted: 4,
            remaining: 3
        })
    );
    assert_eq!(reader.read_obj(), Ok([1u8, 2, 3]));
    assert_eq!(reader.read(&mut [0]), 0);
}

#[test]
fn values_are_written_across_buffers() {
    let case = case(&[], &[3, 5]);
    let mut writer = case.chain.writable();

    writer.write_obj(&0x0403_0201u32).unwrap();
    writer.write_all(&[5, 6]).unwrap();
    let written = writer.written();
    drop(writer);

    assert_eq!(written, 6);
    assert_eq!(case.used(written).data, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_write_of_too_much_writes_nothing() {
    let case = case(&[], &[3]);
    let mut writer = case.chain.writable();

    let result = writer.write_all(&[9; 4]);

    assert_eq!(
        result,
        Err(TransferError {
            wanted: 4,
            remaining: 3
        })
    );
    assert_eq!(writer.written(), 0);
    assert_eq!(writer.write(&[9; 4]), 3);
    drop(writer);
    assert_eq!(case.used(3).data, [9, 9, 9]);
}

#[test]
fn a_header_is_left_out_and_written_last() {
    let case = case(&[], &[8]);
    let mut body = case.chain.writable();
    let mut header = case.chain.writable();

    body.skip(4).unwrap();
    body.write_all(b"body").unwrap();
    header.write_all(b"head").unwrap();
    let written = body.written();
    drop((body, header));

    assert_eq!(case.used(written).data, b"headbody");
}

#[test]
fn iovecs_are_cut_at_both_ends() {
    let case = case(&[&[0; 10], &[0; 20], &[0; 30]], &[]);
    let mut reader = case.chain.readable();

    assert_eq!(lens(reader.iovecs(usize::MAX)), [10, 20, 30]);
    assert_eq!(lens(reader.iovecs(60)), [10, 20, 30]);
    assert_eq!(lens(reader.iovecs(30)), [10, 20]);
    reader.skip(4).unwrap();
    assert_eq!(lens(reader.iovecs(usize::MAX)), [6, 20, 30]);
    assert_eq!(lens(reader.iovecs(7)), [6, 1]);
    assert!(reader.iovecs(0).is_empty());
    reader.skip(6).unwrap();
    assert_eq!(lens(reader.iovecs(usize::MAX)), [20, 30]);
    reader.skip(50).unwrap();
    assert!(reader.iovecs(usize::MAX).is_empty());
}

#[test]
fn a_list_of_cut_ranges_is_made_once_for_all_chains() {
    let mut case = case(&[&[0; 10], &[0; 20]], &[]);
    let list_of = |chain: &Chain| {
        let mut reader = chain.readable();
        reader.skip(1).unwrap();
        reader.iovecs(usize::MAX).as_ptr()
    };
    let first = list_of(&case.chain);
    case.queue.add_used(case.chain.head(), 0).unwrap();

    case.driver.add(&[&[0; 5], &[0; 6]], &[]).unwrap();
    case.queue.pop(&mut case.chain).unwrap();

    assert_eq!(list_of(&case.chain), first);
}

#[test]
fn readable_buffers_go_to_a_file() {
    let case = case(&[b"abc", b"defgh"], &[]);
    let file = file();
    let mut reader = case.chain.readable();
    reader.skip(1).unwrap();

    assert_eq!(reader.write_to(&file, 4).unwrap(), 4);
    assert_eq!(reader.write_to_at(&file, 10, usize::MAX).unwrap(), 3);
    assert_eq!(reader.write_to(&file, usize::MAX).unwrap(), 0);

    let mut content = [0; 13];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"bcde\0\0\0\0\0\0fgh");
}

#[test]
fn writable_buffers_are_filled_from_a_file() {
    let case = case(&[], &[3, 5]);
    let file = file();
    file.write_all_at(b"0123456789", 0).unwrap();
    let mut writer = case.chain.writable();

    assert_eq!(writer.read_from(&file, 4).unwrap(), 4);
    assert_eq!(writer.read_from_at(&file, 9, usize::MAX).unwrap(), 1);
    assert_eq!(writer.read_from_at(&file, 10, usize::MAX).unwrap(), 0);
    let written = writer.written();
    drop(writer);

    assert_eq!(case.used(written).data, b"01239");
}

#[test]
fn a_failed_system_call_moves_nothing() {
    let case = case(&[b"abc"], &[3]);
    let (read_only, write_only) = rustix::pipe::pipe().unwrap();
    let mut reader = case.chain.readable();
    let mut writer = case.chain.writable();

    let write = reader.write_to(&read_only, usize::MAX).unwrap_err();
    let read = writer.read_from(&write_only, usize::MAX).unwrap_err();

    assert_eq!(write.raw_os_error(), Some(libc::EBADF));
    assert_eq!(read.raw_os_error(), Some(libc::EBADF));
    assert_eq!((reader.remaining(), writer.written()), (3, 0));
    assert!(reader.write_to_at(file(), u64::MAX, 1).is_err());
    assert!(writer.read_from_at(file(), u64::MAX, 1).is_err());
}

#[test]
fn more_ranges_than_one_system_call_takes_need_several() {
    let memory = testing::memory(1 << 20);
    let mut driver = Driver::new(&memory, GuestAddress(0), 1 << 20, 2048).unwrap();
    let buffers = vec![b"x".as_slice(); 1500];
    driver.add(&buffers, &[]).unwrap();
    let mut chain = Chain::new();
    driver.queue(0).unwrap().pop(&mut chain).unwrap();
    let mut file = file();
    let mut reader = chain.readable();

    assert_eq!(reader.write_to(&file, usize::MAX).unwrap(), 1024);
    assert_eq!(reader.write_to(&file, usize::MAX).unwrap(), 476);
    file.flush().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1500);
}

proptest! {
    /// However the driver cuts its message and the device its reads: the bytes are the same.
    #[test]
    fn a_message_is_the_same_in_any_pieces(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..8),
        reads in prop::collection::vec(0..50usize, 0..8),
    ) {
        let readable: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let message = pieces.concat();
        let writable: Vec<u32> = pieces.iter().map(|piece| u32::try_from(piece.len()).unwrap()).collect();
        let case = case(&readable, &writable);
        let (mut reader, mut writer) = (case.chain.readable(), case.chain.writable());

        for len in reads.into_iter().chain([message.len()]) {
            let mut part = vec![0; len];
            let read = reader.read(&mut part);
            prop_assert_eq!(writer.write(&part[..read]), read);
            prop_assert_eq!(lens(reader.iovecs(usize::MAX)).iter().sum::<usize>(), reader.remaining());
        }

        let written = writer.written();
        drop((reader, writer));
        prop_assert_eq!(written as usize, message.len());
        prop_assert_eq!(case.used(written).data, message);
    }
}
