// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which register may be written when, and what it reads.

use coracle_virtio::Register;
use rstest::rstest;

use crate::bench::{Bench, MAX_SIZE, OFFERED, State};

const NEVER: &[State] = &[];
const NEGOTIATING: &[State] = &[State::Driver];
const SETTING_UP: &[State] = &[State::FeaturesOk];
const CAN_BE_READY: &[State] = &[State::FeaturesOk, State::QueueReady];
const LIVE: &[State] = &[State::Live, State::NeedsReset];

/// For each register: the states in which a write has an effect (virtio 1.3, section 4.2.2.2).
const WRITABLE: &[(Register, &[State])] = &[
    (Register::MagicValue, NEVER),
    (Register::Version, NEVER),
    (Register::DeviceId, NEVER),
    (Register::VendorId, NEVER),
    (Register::DeviceFeatures, NEVER),
    (Register::DeviceFeaturesSel, State::ALL),
    (Register::DriverFeatures, NEGOTIATING),
    (Register::DriverFeaturesSel, State::ALL),
    (Register::QueueSel, State::ALL),
    (Register::QueueSizeMax, NEVER),
    (Register::QueueSize, SETTING_UP),
    (Register::QueueReady, CAN_BE_READY),
    (Register::QueueNotify, LIVE),
    (Register::InterruptStatus, NEVER),
    (Register::InterruptAck, State::ALL),
    (Register::Status, State::ALL),
    (Register::QueueDescLow, SETTING_UP),
    (Register::QueueDescHigh, SETTING_UP),
    (Register::QueueDriverLow, SETTING_UP),
    (Register::QueueDriverHigh, SETTING_UP),
    (Register::QueueDeviceLow, SETTING_UP),
    (Register::QueueDeviceHigh, SETTING_UP),
    (Register::ShmSel, State::ALL),
    (Register::ShmLenLow, NEVER),
    (Register::ShmLenHigh, NEVER),
    (Register::ShmBaseLow, NEVER),
    (Register::ShmBaseHigh, NEVER),
    (Register::QueueReset, NEVER),
    (Register::ConfigGeneration, NEVER),
];

#[test]
fn the_table_names_every_register() {
    let named: Vec<_> = WRITABLE.iter().map(|(register, _)| *register).collect();

    assert_eq!(named, Register::ALL);
}

/// Every register, in every state: it takes the write where it may, and nothing at all changes
/// where it may not. 0 is a value that every register takes (0 resets the device) but one.
#[test]
fn a_register_is_writable_in_its_states_only() {
    for &state in State::ALL {
        for (register, states) in WRITABLE {
            let mut bench = Bench::at(state);
            let (before, refused) = (bench.fingerprint(), bench.transport.refused_accesses());
            let value = u32::from(*register == Register::QueueSize);

            bench.write(*register, value);

            let may = states.contains(&state);
            let is_refused = bench.transport.refused_accesses() != refused;
            let changed_nothing = bench.fingerprint() == before;
            assert_eq!(is_refused, !may, "{register:?} in {state:?}");
            assert!(may || changed_nothing, "{register:?} in {state:?}");
        }
    }
}

/// What has an effect is seen to have it.
#[rstest]
#[case::size(Register::QueueSize, 4, "size: 4")]
#[case::desc_low(Register::QueueDescLow, 0x10, "desc_table: GuestAddress(0x10)")]
#[case::desc_high(
    Register::QueueDescHigh,
    0x10,
    "desc_table: GuestAddress(0x1000000000)"
)]
#[case::driver_low(Register::QueueDriverLow, 0x20, "avail_ring: GuestAddress(0x20)")]
#[case::driver_high(
    Register::QueueDriverHigh,
    0x20,
    "avail_ring: GuestAddress(0x2000000000)"
)]
#[case::device_low(Register::QueueDeviceLow, 0x40, "used_ring: GuestAddress(0x40)")]
#[case::device_high(
    Register::QueueDeviceHigh,
    0x40,
    "used_ring: GuestAddress(0x4000000000)"
)]
#[case::ready(Register::QueueReady, 1, "ready: true")]
fn queue_registers_reach_the_selected_queue(
    #[case] register: Register,
    #[case] value: u32,
    #[case] says: &str,
) {
    let mut bench = Bench::at(State::FeaturesOk);
    bench.write(Register::QueueSel, 1);
    assert!(!bench.fingerprint().contains(says));

    bench.write(register, value);

    assert!(
        bench.fingerprint().contains(says),
        "{}",
        bench.fingerprint()
    );
}

#[rstest]
#[case::no_such_queue(2)]
#[case::largest(u32::MAX)]
fn a_queue_that_is_not_there_reads_zero_and_takes_nothing(#[case] queue: u32) {
    let mut bench = Bench::at(State::FeaturesOk);
    bench.write(Register::QueueSel, queue);
    let before = bench.fingerprint();

    bench.write(Register::QueueSize, 4);
    bench.write(Register::QueueDescLow, 0x1000);
    bench.write(Register::QueueReady, 1);

    assert_eq!(bench.read(Register::QueueSizeMax), 0);
    assert_eq!(bench.read(Register::QueueReady), 0);
    assert_eq!(bench.fingerprint(), before);
    assert_eq!(bench.transport.refused_accesses(), 3);
}

#[rstest]
#[case::zero(0)]
#[case::no_power_of_two(12)]
#[case::above_the_maximum(32)]
#[case::above_16_bits(0x1_0004)]
fn a_bad_queue_size_is_refused(#[case] size: u32) {
    let mut bench = Bench::at(State::FeaturesOk);
    let before = bench.fingerprint();

    bench.write(Register::QueueSize, size);

    assert_eq!(bench.fingerprint(), before);
}

#[test]
fn ready_is_zero_or_one_and_can_be_taken_back() {
    let mut bench = Bench::at(State::QueueReady);
    bench.write(Register::QueueSel, 0);

    bench.write(Register::QueueReady, 2);
    assert_eq!(bench.read(Register::QueueReady), 1);
    bench.write(Register::QueueReady, 0);

    assert_eq!(bench.read(Register::QueueReady), 0);
}

#[rstest]
#[case(Register::MagicValue, u32::from_le_bytes(*b"virt"))]
#[case(Register::Version, 2)]
#[case(Register::DeviceId, 4)]
#[case(Register::QueueSizeMax, MAX_SIZE.into())]
#[case(Register::QueueReady, 0)]
#[case(Register::InterruptStatus, 0)]
#[case(Register::Status, 0)]
#[case(Register::ShmLenLow, u32::MAX)]
#[case(Register::ShmLenHigh, u32::MAX)]
#[case(Register::QueueReset, 0)]
fn a_register_reads_at_the_start(#[case] register: Register, #[case] value: u32) {
    let mut bench = Bench::new();

    assert_eq!(bench.read(register), value);
    assert_eq!(bench.transport.refused_accesses(), 0);
}

#[test]
fn offered_features_are_read_in_halves() {
    let mut bench = Bench::new();
    let mut halves = [0; 3];

    for (half, value) in (0u32..).zip(&mut halves) {
        bench.write(Register::DeviceFeaturesSel, half);
        *value = bench.read(Register::DeviceFeatures);
    }

    assert_eq!(u64::from(halves[1]) << 32 | u64::from(halves[0]), OFFERED);
    assert_eq!(halves[2], 0);
}
