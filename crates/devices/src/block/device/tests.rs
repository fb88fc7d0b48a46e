// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver and a disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicUsize;

use coracle_virtio::testing::{activate, set_up_queue, write_register};
use coracle_virtio::{CONFIG_OFFSET, DESC_NEXT, DESC_WRITE, Descriptor, Register, features};
use coracle_virtio::{Reader, Writer};
use rstest::rstest;

use super::*;
use crate::block::{DiskFile, Properties};
use crate::testing::{Guest, OUTSIDE, QUEUE_SIZE, SEAM};

const IN: u8 = 0;
const OUT: u8 = 1;
const GET_ID: u8 = 8;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

fn image() -> File {
    let image = tempfile::tempfile().unwrap();
    image.set_len(64 << 10).unwrap();
    image
}

fn guest(image: &File) -> Guest {
    let disk = DiskFile::new(image.try_clone().unwrap(), false).unwrap();
    Guest::active(Block::new(disk, "disk-1").unwrap())
}

fn header(kind: u8, sector: u8) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = kind;
    header[8] = sector;
    header
}

/// Counts flushes, and takes its time.
struct Spy {
    flushes: Arc<AtomicUsize>,
    takes: Duration,
}

impl Spy {
    fn new(takes: Duration) -> (Self, Arc<AtomicUsize>) {
        let flushes = Arc::default();
        let spy = Self {
            flushes: Arc::clone(&flushes),
            takes,
        };
        (spy, flushes)
    }
}

impl Storage for Spy {
    fn properties(&self) -> Properties {
        Properties {
            size: 64 << 10,
            read_only: false,
            block_size: 512,
            physical_block_size: 512,
        }
    }

    fn read(&self, buffers: &mut Writer<'_>, _: u64, len: usize) -> io::Result<()> {
        std::thread::sleep(self.takes);
        buffers.write(&vec![7; len]);
        Ok(())
    }

    fn write(&self, _: &mut Reader<'_>, _: u64, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sectors_are_written_and_read_back() {
    let image = image();
    let mut guest = guest(&image);
    let data = [0x5a; 1024];
    guest.queues[0]
        .add(&[&header(OUT, 3), &data], &[1])
        .unwrap();
    guest.queues[0]
        .add_indirect(&[&header(IN, 3)], &[1000, 24, 1])
        .unwrap();

    guest.kick(0);

    let write = guest.queues[0].used().unwrap().unwrap();
    let read = guest.queues[0].used().unwrap().unwrap();
    assert_eq!((write.len, &write.data[..]), (1, &[OK][..]));
    assert_eq!((read.len, &read.data[..1024]), (1025, &data[..]));
    assert_eq!(read.data[1024], OK);
    assert!(guest.interrupted());
    let mut stored = [0; 1024];
    image.read_exact_at(&mut stored, 3 * 512).unwrap();
    assert_eq!(stored, data);
}

#[test]
fn serial_number_is_padded_with_nul() {
    let mut guest = guest(&image());
    guest.queues[0]
        .add(&[&header(GET_ID, 0)], &[20, 1])
        .unwrap();

    guest.kick(0);

    let answer = guest.queues[0].used().unwrap().unwrap();
    assert_eq!(answer.data, b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[rstest]
#[case::too_long("123456789012345678901")]
#[case::not_ascii("Scheibe-eins-für")]
#[case::space("disk 1")]
#[case::control("disk\n")]
#[case::nul("disk\0")]
fn impossible_serial_number_is_refused(#[case] serial: &str) {
    let (spy, _) = Spy::new(Duration::ZERO);

    let error = Block::new(spy, serial).unwrap_err();

    assert_eq!(error, SerialError(serial.to_owned()));
}

#[test]
fn disk_that_fails_is_an_answer_and_the_device_goes_on() {
    let image = image();
    let mut guest = guest(&image);
    image.set_len(512).unwrap();
    guest.queues[0].add(&[&header(IN, 1)], &[512, 1]).unwrap();
    guest.queues[0].add(&[&header(IN, 0)], &[512, 1]).unwrap();

    guest.kick(0);

    let bad = guest.queues[0].used().unwrap().unwrap();
    assert_eq!(bad.len, 0);
    let good = guest.queues[0].used().unwrap().unwrap();
    assert_eq!((good.len, good.data[512]), (513, OK));
    assert!(!guest.needs_reset());
}

#[rstest]
#[case::flushes_itself(FLUSH | CONFIG_WCE, None, 0)]
#[case::flushes_itself_without_a_choice(FLUSH, None, 0)]
#[case::never_flushes(0, None, 1)]
#[case::never_flushes_but_could_choose(CONFIG_WCE, None, 1)]
#[case::chose_write_through(FLUSH | CONFIG_WCE, Some(0), 1)]
#[case::chose_write_back(FLUSH | CONFIG_WCE, Some(1), 0)]
#[case::chose_nonsense(FLUSH | CONFIG_WCE, Some(2), 0)]
#[case::had_no_choice(FLUSH, Some(0), 0)]
fn write_is_stable_when_the_driver_relies_on_it(
    #[case] wanted: u64,
    #[case] choice: Option<u8>,
    #[case] expected: usize,
) {
    let (spy, flushes) = Spy::new(Duration::ZERO);
    let mut guest = Guest::new(Block::new(spy, "").unwrap());
    let queues = [guest.queues[0].addresses()];
    activate(&mut guest.transport, features::VERSION_1 | wanted, &queues);
    if let Some(choice) = choice {
        guest.transport.write(CONFIG_OFFSET + WRITEBACK, &[choice]);
    }
    guest.queues[0]
        .add(&[&header(OUT, 0), &[0; 512]], &[1])
        .unwrap();

    guest.kick(0);

    assert!(guest.queues[0].used().unwrap().is_some());
    assert_eq!(flushes.load(Ordering::Relaxed), expected);
    let mut writeback = [0xff];
    guest
        .transport
        .read(CONFIG_OFFSET + WRITEBACK, &mut writeback);
    assert_eq!(usize::from(writeback[0]), 1 - expected);
}

#[test]
fn choice_of_a_driver_that_has_none_is_void() {
    let (spy, flushes) = Spy::new(Duration::ZERO);
    let mut guest = Guest::new(Block::new(spy, "").unwrap());
    let queue = guest.queues[0].addresses();
    let transport = &mut guest.transport;
    write_register(transport, Register::Status, 1 | 2);
    write_register(transport, Register::DriverFeatures, FLUSH as u32);
    write_register(transport, Register::DriverFeaturesSel, 1);
    write_register(transport, Register::DriverFeatures, 1);
    write_register(transport, Register::Status, 1 | 2 | 8);
    transport.write(CONFIG_OFFSET + WRITEBACK, &[0]);
    set_up_queue(transport, 0, queue);
    write_register(transport, Register::Status, 1 | 2 | 8 | 4);
    guest.queues[0]
        .add(&[&header(OUT, 0), &[0; 512]], &[1])
        .unwrap();

    guest.kick(0);

    assert!(guest.queues[0].used().unwrap().is_some());
    assert_eq!(flushes.load(Ordering::Relaxed), 0);
}

#[test]
fn reset_takes_the_choice_of_caching_back() {
    let (spy, flushes) = Spy::new(Duration::ZERO);
    let mut guest = Guest::new(Block::new(spy, "").unwrap());
    let queues = [guest.queues[0].addresses()];
    let wanted = features::VERSION_1 | FLUSH | CONFIG_WCE;
    activate(&mut guest.transport, wanted, &queues);
    guest.transport.write(CONFIG_OFFSET + WRITEBACK, &[0]);

    activate(&mut guest.transport, wanted, &queues);
    guest.queues[0]
        .add(&[&header(OUT, 0), &[0; 512]], &[1])
        .unwrap();
    guest.kick(0);

    assert_eq!(flushes.load(Ordering::Relaxed), 0);
}

#[test]
fn slow_disk_gives_its_event_loop_back_between_requests() {
    let (spy, _) = Spy::new(ROUND);
    let mut guest = Guest::active(Block::new(spy, "").unwrap());
    for _ in 0..2 {
        guest.queues[0].add(&[&header(IN, 0)], &[512, 1]).unwrap();
    }
    guest.transport.kicks()[0].write(1).unwrap();

    guest.run_once();

    assert!(guest.queues[0].used().unwrap().is_some());
    assert!(guest.interrupted(), "the first is told at once");
    assert_eq!(guest.queues[0].used().unwrap(), None);
    guest.settle();
    assert!(guest.queues[0].used().unwrap().is_some());
}

const STATUS: Descriptor = Descriptor {
    address: 0x9000,
    len: 1,
    flags: DESC_WRITE,
    next: 0,
};
const DATA: Descriptor = Descriptor {
    address: 0xa000,
    len: 512,
    flags: DESC_WRITE | DESC_NEXT,
    next: 2,
};
const HEADER: Descriptor = Descriptor {
    address: 0xc000,
    len: 16,
    flags: DESC_NEXT,
    next: 1,
};

/// A read of sector 0 with these descriptors.
fn put(guest: &mut Guest, chain: [Descriptor; 3]) {
    for (index, descriptor) in (0..).zip(chain) {
        guest.queues[0].put(index, descriptor).unwrap();
    }
    guest.queues[0].publish(0).unwrap();
}

#[rstest]
#[case::header_outside([Descriptor { address: OUTSIDE, ..HEADER }, DATA, STATUS])]
#[case::header_end_outside([Descriptor { address: OUTSIDE - 8, ..HEADER }, DATA, STATUS])]
#[case::data_outside([HEADER, Descriptor { address: OUTSIDE, ..DATA }, STATUS])]
#[case::data_end_outside([HEADER, Descriptor { address: OUTSIDE - 8, ..DATA }, STATUS])]
#[case::data_wrapping([HEADER, Descriptor { address: u64::MAX - 8, ..DATA }, STATUS])]
#[case::status_outside([HEADER, DATA, Descriptor { address: OUTSIDE, ..STATUS }])]
#[case::header_empty([Descriptor { len: 0, ..HEADER }, DATA, STATUS])]
#[case::status_before_data([HEADER, DATA, Descriptor { flags: 0, ..STATUS }])]
#[case::loop_to_itself([HEADER, Descriptor { next: 1, ..DATA }, STATUS])]
#[case::next_outside_the_table([HEADER, Descriptor { next: QUEUE_SIZE, ..DATA }, STATUS])]
fn broken_chain_takes_the_device_out_of_service(#[case] chain: [Descriptor; 3]) {
    let mut guest = guest(&image());
    put(&mut guest, chain);

    guest.kick(0);

    assert!(guest.needs_reset());
    assert_eq!(guest.queues[0].used().unwrap(), None);
}

#[test]
fn buffer_across_adjacent_regions_is_filled() {
    let image = image();
    image.write_all_at(&[9; 512], 0).unwrap();
    let mut guest = guest(&image);
    let across = Descriptor {
        address: SEAM - 100,
        ..DATA
    };
    put(&mut guest, [HEADER, across, STATUS]);

    guest.kick(0);

    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 513);
    let mut data = [0; 512];
    let memory = guest.queues[0].memory();
    let start = coracle_memory::GuestAddress(SEAM - 100);
    memory.read(start, &mut data).unwrap();
    assert_eq!(data, [9; 512]);
}

#[test]
fn header_that_is_its_own_answer_is_read_before_it_is_written() {
    let image = image();
    image.write_all_at(&[0xff; 512], 0).unwrap();
    let mut guest = guest(&image);
    let over_the_header = Descriptor {
        address: HEADER.address,
        ..DATA
    };
    put(&mut guest, [HEADER, over_the_header, STATUS]);

    guest.kick(0);

    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 513);
}

#[test]
fn head_published_twice_is_answered_twice() {
    let mut guest = guest(&image());
    put(&mut guest, [HEADER, DATA, STATUS]);
    guest.queues[0].publish(0).unwrap();

    guest.kick(0);

    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 513);
    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 513);
    assert!(!guest.needs_reset());
}

#[test]
fn request_without_a_status_gets_its_buffers_back() {
    let mut guest = guest(&image());
    guest.queues[0].add(&[&header(IN, 0)], &[]).unwrap();
    guest.queues[0].add(&[&header(IN, 200)], &[1]).unwrap();

    guest.kick(0);

    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 0);
    assert_eq!(guest.queues[0].used().unwrap().unwrap().data, [IO_ERROR]);
    assert!(!guest.needs_reset());
}

#[test]
fn device_works_again_after_a_reset() {
    let mut guest = guest(&image());
    guest.queues[0].publish(QUEUE_SIZE).unwrap();
    guest.kick(0);
    assert!(guest.needs_reset());

    guest.activate();
    guest.queues[0].add(&[&header(IN, 0)], &[512, 1]).unwrap();
    guest.kick(0);

    assert!(!guest.needs_reset());
    assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 513);
}
