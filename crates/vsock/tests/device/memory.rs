// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers cut anywhere, too small, given twice, and outside memory.

use std::io::Write;

use coracle_memory::GuestAddress;
use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor};
use coracle_vsock::packet::{HEADER_LEN, Header, Op};
use rstest::rstest;

use crate::guest::{Guest, PORTS, RX, TX, data, packet, pattern, ports, read_now};

#[rstest]
#[case::one_descriptor(&[44 + 26])]
#[case::header_and_data(&[44, 26])]
#[case::header_in_two(&[20, 24, 26])]
#[case::header_with_some_data(&[50, 20])]
#[case::data_in_three(&[44, 1, 20, 5])]
#[case::cut_across(&[30, 30, 10])]
#[case::each_byte(&[1; 70])]
fn packet_may_be_cut_anywhere(#[case] pieces: &[usize]) {
    let (mut guest, mut host) = Guest::connected();
    let mut bytes = data(PORTS, 26).to_bytes().to_vec();
    bytes.extend(b'a'..=b'z');
    let mut rest = &bytes[..];
    let cut: Vec<&[u8]> = pieces
        .iter()
        .map(|&len| rest.split_off(..len).unwrap())
        .collect();

    guest.add_pieces(&cut);
    guest.kick(TX);

    assert_eq!(read_now(&mut host), (bytes[HEADER_LEN..].to_vec(), false));
}

#[rstest]
#[case::one_descriptor(&[70])]
#[case::header_and_data(&[44, 26])]
#[case::cut_across(&[30, 30, 30])]
#[case::each_byte(&[1; 70])]
fn buffer_may_be_cut_anywhere(#[case] pieces: &[u32]) {
    let (mut guest, mut host) = Guest::connected();
    guest.give_buffers(1, pieces);

    host.write_all(b"abcdefghijklmnopqrstuvwxyz").unwrap();
    guest.run();

    let (_, bytes) = guest.try_receive().unwrap();
    assert_eq!(bytes, b"abcdefghijklmnopqrstuvwxyz");
}

#[rstest]
#[case::no_room_for_a_header(&[43])]
#[case::no_room_for_data(&[44])]
fn buffer_that_is_too_small_is_given_back(#[case] small: &[u32]) {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(b"data").unwrap();

    guest.give_buffers(20, small);

    assert_eq!(guest.receive().1, b"data");
}

const MEMORY_END: u64 = 384 << 20;
const AFTER_HOLE: u64 = 512 << 20;
const ADJACENT: u64 = 640 << 20;

/// A transmit chain of a header in memory and data anywhere.
fn send_data_at(guest: &mut Guest, header: &Header, address: u64, len: u32) {
    let place = GuestAddress(MEMORY_END - 4096);
    guest.memory.write(place, &header.to_bytes()).unwrap();
    let head = Descriptor {
        address: place.0,
        len: HEADER_LEN as u32,
        flags: DESC_NEXT,
        next: 101,
    };
    let tail = Descriptor {
        address,
        len,
        flags: 0,
        next: 0,
    };
    guest.drivers[TX].put(100, head).unwrap();
    guest.drivers[TX].put(101, tail).unwrap();
    guest.drivers[TX].publish(100).unwrap();
    guest.kick(TX);
}

#[rstest]
#[case::past_the_end_of_a_region(MEMORY_END - 10, 26)]
#[case::over_two_regions_with_a_hole_between(MEMORY_END - 10, (AFTER_HOLE - MEMORY_END) as u32 + 26)]
#[case::in_the_hole(MEMORY_END, 26)]
#[case::around_the_end_of_addresses(u64::MAX - 10, 26)]
fn data_outside_memory_stops_the_device_until_its_reset(#[case] address: u64, #[case] len: u32) {
    let (mut guest, mut host) = Guest::connected();

    send_data_at(&mut guest, &data(PORTS, 26), address, len);

    assert!(guest.needs_reset());
    assert_eq!(read_now(&mut host), (Vec::new(), true));
    guest.activate();
    guest.assert_served();
}

#[test]
fn data_over_two_adjacent_regions_is_whole() {
    let (mut guest, mut host) = Guest::connected();
    let bytes = pattern(100, 4);
    guest
        .memory
        .write(GuestAddress(ADJACENT - 50), &bytes)
        .unwrap();

    send_data_at(&mut guest, &data(PORTS, 100), ADJACENT - 50, 100);

    assert_eq!(read_now(&mut host), (bytes, false));
}

#[rstest]
#[case::past_the_end_of_a_region(MEMORY_END - 50, 100)]
#[case::in_the_hole(MEMORY_END, 100)]
#[case::around_the_end_of_addresses(u64::MAX - 50, 100)]
fn buffer_outside_memory_stops_the_device(#[case] address: u64, #[case] len: u32) {
    let mut guest = Guest::new();
    let buffer = Descriptor {
        address,
        len,
        flags: DESC_WRITE,
        next: 0,
    };
    guest.drivers[RX].put(100, buffer).unwrap();
    guest.drivers[RX].publish(100).unwrap();

    guest.send(&packet(ports(1, 1), Op::Request), &[]);

    assert!(guest.needs_reset());
}

#[test]
fn buffer_offered_twice_while_the_device_holds_it_is_filled_once_at_a_time() {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(b"x").unwrap();
    guest.run();
    assert_eq!(guest.receive().1, b"x");
    // There might be more data, so the device takes this buffer, and keeps it when there is none.
    let head = guest.drivers[RX].add(&[], &[4096]).unwrap();
    guest.kick(RX);

    guest.drivers[RX].publish(head).unwrap();
    guest.kick(RX);
    assert_eq!(guest.drivers[RX].used().unwrap(), None);
    guest.add(&packet(ports(1, 1), Op::Request), &[]);
    guest.add(&packet(ports(1, 2), Op::Request), &[]);
    guest.kick(TX);

    let heads: Vec<u32> = std::iter::from_fn(|| guest.drivers[RX].used().unwrap())
        .map(|used| used.head)
        .collect();
    assert_eq!(heads, [u32::from(head); 2]);
    guest.assert_served();
}

#[test]
fn index_far_ahead_stops_the_device() {
    let mut guest = Guest::new();

    guest.drivers[TX].set_avail_index(257).unwrap();
    guest.kick(TX);

    assert!(guest.needs_reset());
    assert_eq!(guest.workers.run(), 0);
}
