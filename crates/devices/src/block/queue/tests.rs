// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests against a disk in memory.

use std::sync::Mutex;

use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::testing::{chain, written};

const SECTORS: usize = 8;
const SIZE: usize = SECTORS * 512;
const DISK: Disk = Disk {
    size: SIZE as u64,
    read_only: false,
    id: *b"serial-number-of-20b",
};
const READ_ONLY: Disk = Disk {
    read_only: true,
    ..DISK
};

/// A disk in memory, which takes note of what it is asked and refuses what is not inside of it.
#[derive(Default)]
struct InMemory {
    bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<&'static str>>,
    fails: Option<io::ErrorKind>,
}

impl InMemory {
    fn new() -> Self {
        Self {
            bytes: Mutex::new((0..SIZE).map(|at| (at / 512 * 16 + at % 7) as u8).collect()),
            ..Self::default()
        }
    }

    fn failing(kind: io::ErrorKind) -> Self {
        Self {
            fails: Some(kind),
            ..Self::new()
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn at<T>(
        &self,
        call: &'static str,
        offset: u64,
        len: u64,
        work: impl FnOnce(&mut [u8]) -> T,
    ) -> io::Result<T> {
        self.calls.lock().unwrap().push(call);
        if let Some(kind) = self.fails {
            return Err(kind.into());
        }
        let (offset, len) = (offset as usize, len as usize);
        Ok(work(&mut self.bytes.lock().unwrap()[offset..offset + len]))
    }
}

impl Storage for InMemory {
    fn properties(&self) -> Properties {
        Properties {
            size: SIZE as u64,
            read_only: false,
            block_size: 512,
            physical_block_size: 512,
        }
    }

    fn read(&self, buffers: &mut Writer<'_>, offset: u64, len: usize) -> io::Result<()> {
        self.at("read", offset, len as u64, |bytes| {
            assert_eq!(buffers.write(bytes), len);
        })
    }

    fn write(&self, buffers: &mut Reader<'_>, offset: u64, len: usize) -> io::Result<()> {
        self.at("write", offset, len as u64, |bytes| {
            assert_eq!(buffers.read(bytes), len);
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.at("flush", 0, 0, |_| ())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.at("discard", offset, len, |bytes| bytes.fill(0xdd))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let call = if unmap { "unmap" } else { "zero" };
        self.at(call, offset, len, |bytes| bytes.fill(0))
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0xaa; 4]);
    header.extend(sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// What the last writable byte of the chain holds.
fn status(chain: &Chain) -> u8 {
    *written(chain, usize::MAX).last().unwrap()
}

#[rstest]
#[case::data_and_status_apart(&[1024, 1])]
#[case::in_one_buffer(&[1025])]
#[case::scattered(&[3, 509, 511, 2])]
fn read_fills_the_buffers_and_the_last_byte_is_the_status(#[case] buffers: &[u32]) {
    let chain = chain(&[&header(TYPE_IN, 2)], buffers);
    let disk = InMemory::new();

    let answer = serve(&chain, &DISK, &disk, false);

    assert_eq!(answer.written, 1025);
    assert_eq!(written(&chain, 1024), disk.bytes()[1024..2048]);
    assert_eq!(status(&chain), STATUS_OK);
}

#[rstest]
#[case::header_and_data_apart(&[16, 512])]
#[case::in_one_buffer(&[528])]
#[case::header_in_pieces(&[1, 7, 9, 510, 1])]
fn write_stores_what_is_behind_the_header(#[case] buffers: &[usize]) {
    let message = [header(TYPE_OUT, 7), vec![0x5a; 512]].concat();
    let mut rest = &message[..];
    let parts: Vec<&[u8]> = buffers
        .iter()
        .map(|len| rest.split_off(..*len).unwrap())
        .collect();
    let chain = chain(&parts, &[1]);
    let disk = InMemory::new();

    let answer = serve(&chain, &DISK, &disk, false);

    assert_eq!((answer.written, status(&chain)), (1, STATUS_OK));
    assert_eq!(
        disk.bytes()[..SIZE - 512],
        InMemory::new().bytes()[..SIZE - 512]
    );
    assert_eq!(disk.bytes()[SIZE - 512..], [0x5a; 512]);
}

#[rstest]
#[case::write(header(TYPE_OUT, 0), [0; 512].to_vec(), &["write"], &["write", "flush"])]
#[case::zeroes(header(TYPE_WRITE_ZEROES, 0), range(0, 1, 0), &["zero"], &["zero", "flush"])]
#[case::flush(header(TYPE_FLUSH, 0), vec![], &["flush"], &["flush"])]
#[case::discard(header(TYPE_DISCARD, 0), range(0, 1, 0), &["discard"], &["discard"])]
fn write_through_flushes_before_it_answers(
    #[case] header: Vec<u8>,
    #[case] data: Vec<u8>,
    #[case] back: &[&str],
    #[case] through: &[&str],
) {
    let request = [header, data].concat();
    let chain = chain(&[&request], &[1]);

    let calls = [false, true].map(|write_through| {
        let disk = InMemory::new();
        let answer = serve(&chain, &DISK, &disk, write_through);
        answer.outcome.unwrap();
        disk.calls()
    });

    assert_eq!(calls, [back, through]);
}

#[rstest]
#[case::exactly(20, 20)]
#[case::too_short(5, 5)]
#[case::no_room(0, 0)]
#[case::longer(64, 20)]
fn serial_number_is_told_as_far_as_there_is_room(#[case] room: u32, #[case] told: usize) {
    let buffers: Vec<u32> = [room, 1].into_iter().filter(|len| *len > 0).collect();
    let chain = chain(&[&header(TYPE_GET_ID, 0)], &buffers);

    let answer = serve(&chain, &DISK, &InMemory::new(), false);

    answer.outcome.unwrap();
    assert_eq!(written(&chain, told), DISK.id[..told]);
    assert_eq!(status(&chain), STATUS_OK);
}

#[rstest]
#[case::written((1, 2, 0), "zero", 512..1536)]
#[case::given_back((4, 1, RANGE_UNMAP), "unmap", 2048..2560)]
#[case::nothing((8, 0, 0), "zero", 0..0)]
fn range_is_zeroed_in_its_way(
    #[case] (sector, sectors, flags): (u64, u32, u32),
    #[case] call: &str,
    #[case] zeroed: std::ops::Range<usize>,
) {
    let request = [header(TYPE_WRITE_ZEROES, 0), range(sector, sectors, flags)].concat();
    let chain = chain(&[&request], &[1]);
    let disk = InMemory::new();

    serve(&chain, &DISK, &disk, false).outcome.unwrap();

    assert_eq!(disk.calls(), [call]);
    let mut expected = InMemory::new().bytes();
    expected[zeroed].fill(0);
    assert_eq!(disk.bytes(), expected);
}

#[rstest]
#[case::no_header(&DISK, vec![1; 15], STATUS_IO_ERROR)]
#[case::nothing_readable(&DISK, vec![], STATUS_IO_ERROR)]
#[case::part_of_a_sector(&DISK, [header(TYPE_OUT, 0), vec![0; 511]].concat(), STATUS_IO_ERROR)]
#[case::write_past_the_end(&DISK, [header(TYPE_OUT, 7), vec![0; 1024]].concat(), STATUS_IO_ERROR)]
#[case::write_at_the_end(&DISK, [header(TYPE_OUT, 8), vec![0; 512]].concat(), STATUS_IO_ERROR)]
#[case::wrapping_sector(&DISK, [header(TYPE_OUT, 1 << 55), vec![0; 512]].concat(), STATUS_IO_ERROR)]
#[case::last_sector(&DISK, [header(TYPE_OUT, u64::MAX), vec![0; 512]].concat(), STATUS_IO_ERROR)]
#[case::wrapping_end(&DISK, [header(TYPE_OUT, u64::MAX >> 9), vec![0; 512]].concat(), STATUS_IO_ERROR)]
#[case::write_to_read_only(&READ_ONLY, [header(TYPE_OUT, 0), vec![0; 512]].concat(), STATUS_IO_ERROR)]
#[case::discard_on_read_only(&READ_ONLY, [header(TYPE_DISCARD, 0), range(0, 1, 0)].concat(), STATUS_UNSUPPORTED)]
#[case::zeroes_on_read_only(&READ_ONLY, [header(TYPE_WRITE_ZEROES, 0), range(0, 1, 0)].concat(), STATUS_UNSUPPORTED)]
#[case::no_ranges(&DISK, header(TYPE_DISCARD, 0), STATUS_IO_ERROR)]
#[case::part_of_a_range(&DISK, [header(TYPE_DISCARD, 0), vec![0; 15]].concat(), STATUS_IO_ERROR)]
#[case::too_many_ranges(&DISK, [header(TYPE_DISCARD, 0), range(0, 1, 0).repeat(17)].concat(), STATUS_IO_ERROR)]
#[case::range_past_the_end(&DISK, [header(TYPE_DISCARD, 0), range(7, 2, 0)].concat(), STATUS_IO_ERROR)]
#[case::wrapping_range(&DISK, [header(TYPE_WRITE_ZEROES, 0), range(u64::MAX, 1, 0)].concat(), STATUS_IO_ERROR)]
#[case::second_range_past_the_end(&DISK, [header(TYPE_DISCARD, 0), range(0, 1, 0), range(9, 1, 0)].concat(), STATUS_IO_ERROR)]
#[case::second_range_of_zeroes(&DISK, [header(TYPE_WRITE_ZEROES, 0), range(0, 1, 0), range(1, 1, 0)].concat(), STATUS_IO_ERROR)]
#[case::endless_range(&DISK, [header(TYPE_WRITE_ZEROES, 0), range(0, u32::MAX, 0)].concat(), STATUS_IO_ERROR)]
#[case::discard_with_unmap(&DISK, [header(TYPE_DISCARD, 0), range(0, 1, 1)].concat(), STATUS_UNSUPPORTED)]
#[case::unknown_flag(&DISK, [header(TYPE_WRITE_ZEROES, 0), range(0, 1, 2)].concat(), STATUS_UNSUPPORTED)]
#[case::scsi_command(&DISK, header(2, 0), STATUS_UNSUPPORTED)]
#[case::lifetime(&DISK, header(10, 0), STATUS_UNSUPPORTED)]
#[case::secure_erase(&DISK, [header(14, 0), range(0, 1, 0)].concat(), STATUS_UNSUPPORTED)]
#[case::zone_report(&DISK, header(16, 0), STATUS_UNSUPPORTED)]
#[case::barrier_bit(&DISK, header(TYPE_OUT | 1 << 31, 0), STATUS_UNSUPPORTED)]
fn wrong_request_is_refused_and_touches_nothing(
    #[case] disk: &Disk,
    #[case] request: Vec<u8>,
    #[case] expected: u8,
) {
    let readable = [&request[..]];
    let readable = if request.is_empty() {
        &[][..]
    } else {
        &readable
    };
    let chain = chain(readable, &[1]);
    let storage = InMemory::new();

    let answer = serve(&chain, disk, &storage, true);

    assert!(matches!(answer.outcome, Err(RequestError::Refused(_))));
    assert_eq!((answer.written, status(&chain)), (1, expected));
    assert_eq!(storage.calls(), [""; 0]);
}

#[rstest]
#[case::past_the_end(8, 512)]
#[case::longer_than_the_disk(0, SIZE as u32 + 512)]
#[case::part_of_a_sector(0, 100)]
#[case::wrapping(u64::MAX / 512, 512)]
fn wrong_read_has_its_status_and_no_data(#[case] sector: u64, #[case] room: u32) {
    let chain = chain(&[&header(TYPE_IN, sector)], &[room, 1]);
    let storage = InMemory::new();

    let answer = serve(&chain, &DISK, &storage, false);

    assert_eq!((answer.written, status(&chain)), (0, STATUS_IO_ERROR));
    assert_eq!(storage.calls(), [""; 0]);
}

#[test]
fn request_without_room_for_a_status_is_not_tried() {
    let request = [header(TYPE_OUT, 0), vec![0; 512]].concat();
    let chain = chain(&[&request], &[]);
    let storage = InMemory::new();

    let answer = serve(&chain, &DISK, &storage, false);

    assert!(matches!(answer.outcome, Err(RequestError::NoStatus)));
    assert_eq!(answer.written, 0);
    assert_eq!(storage.calls(), [""; 0]);
}

#[rstest]
#[case::full(io::ErrorKind::StorageFull, STATUS_IO_ERROR)]
#[case::shorter_than_it_was(io::ErrorKind::UnexpectedEof, STATUS_IO_ERROR)]
#[case::broken(io::ErrorKind::Other, STATUS_IO_ERROR)]
#[case::impossible(io::ErrorKind::Unsupported, STATUS_UNSUPPORTED)]
fn storage_that_fails_is_told_to_the_driver(
    #[case] kind: io::ErrorKind,
    #[case] expected: u8,
    #[values(TYPE_IN, TYPE_OUT, TYPE_FLUSH, TYPE_DISCARD, TYPE_WRITE_ZEROES)] request: u32,
) {
    let mut message = header(request, 0);
    message.extend(match request {
        TYPE_OUT => vec![0; 512],
        TYPE_IN | TYPE_FLUSH => Vec::new(),
        _ => range(0, 1, 0),
    });
    let chain = chain(
        &[&message],
        if request == TYPE_IN { &[512, 1] } else { &[1] },
    );

    let answer = serve(&chain, &DISK, &InMemory::failing(kind), false);

    assert!(matches!(answer.outcome, Err(RequestError::Storage { .. })));
    assert_eq!(status(&chain), expected);
}

#[rstest]
#[case::most(MAX_DATA as usize, true)]
#[case::more(MAX_DATA as usize + 512, false)]
#[case::all_that_a_chain_can_hold(u32::MAX as usize & !511, false)]
fn data_has_a_limit_whatever_the_size_of_the_disk(#[case] len: usize, #[case] possible: bool) {
    let disk = Disk {
        size: 1 << 40,
        ..DISK
    };

    let expected = if possible {
        Ok(512)
    } else {
        Err(Refusal::TooLong(len))
    };
    assert_eq!(sectors_at(1, len, &disk), expected);
}

fn any_request() -> impl Strategy<Value = (Vec<u8>, Vec<u32>)> {
    let kind = prop_oneof![
        proptest::sample::select(vec![0u32, 1, 4, 8, 11, 13]),
        any::<u32>()
    ];
    let sector = prop_oneof![0..=SECTORS as u64, any::<u64>()];
    let body = prop_oneof![
        vec(any::<u8>(), 0..1600),
        (0usize..5).prop_map(|sectors| vec![7; sectors * 512]),
        vec((0..10u64, 0..10u32, 0..3u32), 1..20).prop_map(|ranges| ranges
            .into_iter()
            .flat_map(|(sector, sectors, flags)| range(sector, sectors, flags))
            .collect()),
    ];
    let room = vec(
        prop_oneof![1u32..600, proptest::sample::select(vec![1, 512, 1024])],
        0..4,
    );
    (kind, sector, body, room)
        .prop_map(|(kind, sector, body, room)| ([header(kind, sector), body].concat(), room))
}

proptest! {
    /// [`InMemory`] panics for what is outside of it.
    #[test]
    fn any_request_stays_inside_the_disk_and_is_answered((request, room) in any_request()) {
        let chain = chain(&[&request], &room);

        let answer = serve(&chain, &DISK, &InMemory::new(), true);

        prop_assert!(answer.written <= chain.writable_len());
        if room.is_empty() {
            prop_assert!(matches!(answer.outcome, Err(RequestError::NoStatus)));
        } else {
            prop_assert_eq!(status(&chain) == STATUS_OK, answer.outcome.is_ok());
        }
    }

    #[test]
    fn what_was_written_is_read_back(
        sector in 0..SECTORS as u64,
        data in vec(any::<u8>(), 512..=512),
        cut in 1usize..511,
    ) {
        let disk = InMemory::new();
        let write = chain(&[&header(TYPE_OUT, sector), &data[..cut], &data[cut..]], &[1]);
        let read = chain(&[&header(TYPE_IN, sector)], &[cut as u32, 512 - cut as u32, 1]);

        serve(&write, &DISK, &disk, false).outcome.unwrap();
        let answer = serve(&read, &DISK, &disk, false);

        prop_assert_eq!(answer.written, 513);
        prop_assert_eq!(written(&read, 512), data);
    }
}
