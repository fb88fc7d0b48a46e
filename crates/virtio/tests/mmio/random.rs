// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers at random.

use coracle_virtio::testing::activate;
use coracle_virtio::{Register, features};
use proptest::prelude::*;

use crate::bench::{Bench, Log, OFFERED};

/// An access by a driver that knows the registers, but not when to use them.
fn any_write() -> impl Strategy<Value = (u64, u32)> {
    let register = prop::sample::select(Register::ALL).prop_map(|register| register as u64);
    let likely = prop::sample::select(vec![
        Register::Status,
        Register::DriverFeatures,
        Register::QueueReady,
        Register::QueueSize,
    ]);
    let value = prop_oneof![
        5 => prop::sample::select(vec![0u32, 1, 3, 11, 15, 128]),
        1 => any::<u32>(),
    ];
    (
        prop_oneof![register, likely.prop_map(|register| register as u64)],
        value,
    )
}

proptest! {
    /// Whatever is written in whatever order: there is a worker only if the device is live, the
    /// agreed features were offered, and a reset and a good driver bring the device up.
    #[test]
    fn no_sequence_of_writes_breaks_the_transport(
        writes in prop::collection::vec(any_write(), 0..200),
    ) {
        let mut bench = Bench::new();

        for (offset, value) in writes {
            bench.transport.write(offset, &value.to_le_bytes());
            let status = bench.transport.status();
            prop_assert!(bench.workers.running() <= usize::from(status.is_live()));
        }

        let features_of = |log: &Log| log.activations.iter().map(|(f, _)| *f).collect::<Vec<_>>();
        for features in features_of(&bench.log()) {
            prop_assert_eq!(features & !OFFERED, 0);
            prop_assert_ne!(features & features::VERSION_1, 0);
        }
        let addresses = bench.addresses();
        prop_assert_eq!(activate(&mut bench.transport, OFFERED, &[addresses]), 15);
    }
}
