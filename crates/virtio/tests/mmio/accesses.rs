// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts, kicks and configuration, and accesses of any width to any place.

use coracle_virtio::{CONFIG_OFFSET, DeviceStatus, MMIO_WINDOW_SIZE, NOTIFY_OFFSET, Register};
use rstest::rstest;

use crate::bench::{Bench, State};

#[test]
fn needs_reset_is_read_and_announced_until_the_reset() {
    let mut bench = Bench::at(State::NeedsReset);

    assert_eq!(bench.read(Register::Status), 15 | DeviceStatus::NEEDS_RESET);
    assert_eq!(bench.read(Register::InterruptStatus), 2);
    bench.write(Register::Status, 0);

    assert_eq!(bench.read(Register::Status), 0);
}

#[test]
fn reasons_of_interrupts_are_read_and_acknowledged() {
    let mut bench = Bench::at(State::Live);
    let interrupt = bench.interrupt();
    interrupt.used_buffers();
    interrupt.config_changed();
    assert_eq!(bench.read(Register::InterruptStatus), 3);

    bench.write(Register::InterruptAck, 1);

    assert_eq!(bench.read(Register::InterruptStatus), 2);
}

#[test]
fn each_change_of_configuration_is_a_new_generation() {
    let mut bench = Bench::at(State::Live);
    let before = bench.read(Register::ConfigGeneration);

    let interrupt = bench.interrupt();
    interrupt.config_changed();

    assert_ne!(bench.read(Register::ConfigGeneration), before);
}

#[test]
fn a_kick_through_the_register_reaches_its_queue() {
    let mut bench = Bench::at(State::Live);

    bench.transport.write(NOTIFY_OFFSET, &1u32.to_le_bytes());
    bench.transport.write(NOTIFY_OFFSET, &2u32.to_le_bytes());

    assert_eq!(bench.transport.kicks()[1].read().unwrap(), 1);
    assert!(bench.transport.kicks()[0].read().is_err());
    assert_eq!(bench.transport.refused_accesses(), 1);
}

#[test]
fn kicks_of_before_the_reset_are_void() {
    let mut bench = Bench::at(State::Live);
    bench.write(Register::QueueNotify, 0);

    bench.write(Register::Status, 0);

    assert!(bench.transport.kicks()[0].read().is_err());
}

#[rstest]
#[case::byte(0, 1, &[1])]
#[case::half_word(2, 2, &[3, 4])]
#[case::word(4, 4, &[5, 6, 7, 8])]
#[case::past_the_end(8, 4, &[0, 0, 0, 0])]
#[case::last_of_the_window(MMIO_WINDOW_SIZE - CONFIG_OFFSET - 4, 4, &[0, 0, 0, 0])]
fn configuration_reads(#[case] offset: u64, #[case] len: usize, #[case] expected: &[u8]) {
    let mut bench = Bench::new();
    bench.log().config = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut data = vec![0xff; len];

    bench.transport.read(CONFIG_OFFSET + offset, &mut data);

    assert_eq!(data, expected);
    assert_eq!(bench.transport.refused_accesses(), 0);
}

#[rstest]
#[case(State::Start, false)]
#[case(State::Driver, false)]
#[case(State::FeaturesOk, true)]
#[case(State::Live, true)]
#[case(State::Failed, false)]
fn configuration_is_written_after_features_are_agreed(#[case] state: State, #[case] may: bool) {
    let mut bench = Bench::at(state);

    bench.transport.write(CONFIG_OFFSET, &[9]);

    assert_eq!(bench.log().config[0] == 9, may);
}

#[rstest]
#[case::register_byte(0x070, 1)]
#[case::register_half_word(0x070, 2)]
#[case::register_two_words(0x070, 8)]
#[case::register_misaligned(0x072, 4)]
#[case::register_that_is_none(0x0d0, 4)]
#[case::no_bytes(0x070, 0)]
#[case::over_the_border_of_registers(0x0fe, 4)]
#[case::config_misaligned(0x101, 2)]
#[case::config_three_bytes(0x100, 3)]
#[case::config_two_words(0x100, 8)]
#[case::config_over_the_end(0xffe, 4)]
#[case::past_the_window(0x1000, 4)]
#[case::last_offset(u64::MAX, 1)]
#[case::more_than_any_access(0x100, 4096)]
fn an_access_of_bad_width_or_place_does_nothing(#[case] offset: u64, #[case] len: usize) {
    let mut bench = Bench::at(State::Live);
    let before = bench.fingerprint();
    let mut data = vec![0xff; len];

    bench.transport.read(offset, &mut data);
    bench.transport.write(offset, &vec![0; len]);

    assert!(data.iter().all(|byte| *byte == 0));
    assert_eq!(bench.fingerprint(), before);
    assert_eq!(bench.transport.refused_accesses(), 2);
}
