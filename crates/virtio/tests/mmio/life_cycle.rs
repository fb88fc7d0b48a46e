// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the first status bit to a live device, what may fail on the way, and back by a reset.

use std::sync::Arc;

use coracle_virtio::testing::{self, LocalWorkers, activate, set_up_queue};
use coracle_virtio::{
    DeviceStatus, MmioTransport, Register, TransportError, Worker, WorkerError, WorkerId, Workers,
    features,
};
use rstest::rstest;

use crate::bench::{Bench, MAX_SIZE, MEMORY, OFFERED, Probe, SharedLog, State};

#[rstest]
#[case::all(OFFERED, true)]
#[case::none_but_the_version(features::VERSION_1, true)]
#[case::without_the_version(OFFERED & !features::VERSION_1, false)]
#[case::one_that_was_not_offered(OFFERED | 1, false)]
#[case::one_that_was_not_offered_above(OFFERED | 1 << 40, false)]
fn features_are_agreed_only_if_offered(#[case] accepted: u64, #[case] agreed: bool) {
    let mut bench = Bench::at(State::Driver);
    bench.accept(accepted);

    bench.write(Register::Status, 11);

    let status = bench.transport.status();
    assert_eq!(status.has(DeviceStatus::FEATURES_OK), agreed);
    assert_eq!(bench.read(Register::Status) == 11, agreed);
}

#[test]
fn features_above_the_second_half_are_refused() {
    let mut bench = Bench::at(State::Driver);
    bench.write(Register::DriverFeaturesSel, 2);

    bench.write(Register::DriverFeatures, 1);

    assert_eq!(bench.transport.refused_accesses(), 1);
}

#[test]
fn a_driver_that_failed_to_agree_may_choose_again() {
    let mut bench = Bench::at(State::Driver);
    bench.accept(1);
    bench.write(Register::Status, 11);
    assert_eq!(bench.read(Register::Status), 3);

    bench.accept(OFFERED);
    bench.write(Register::Status, 11);

    assert_eq!(bench.read(Register::Status), 11);
}

#[test]
fn a_ready_driver_activates_the_device_with_its_ready_queues() {
    let mut bench = Bench::at(State::FeaturesOk);
    let addresses = bench.addresses();
    set_up_queue(&mut bench.transport, 1, addresses);

    bench.write(Register::Status, 15);

    assert_eq!(bench.log().activations, [(OFFERED, vec![1])]);
    assert_eq!(bench.workers.running(), 1);
    assert_eq!(bench.read(Register::Status), 15);
}

#[test]
fn a_device_without_a_worker_is_live_all_the_same() {
    let mut bench = Bench::at(State::QueueReady);
    bench.log().has_no_worker = true;

    bench.write(Register::Status, 15);

    assert_eq!(bench.workers.running(), 0);
    assert!(bench.transport.status().is_live());
    assert_eq!(bench.read(Register::Status), 15);
}

#[rstest]
#[case::table_outside(Register::QueueDescHigh, 1)]
#[case::avail_misaligned(Register::QueueDriverLow, 0x2001)]
#[case::used_reaches_the_end(Register::QueueDeviceLow, MEMORY as u32 - 4)]
fn a_bad_queue_address_fails_activation(#[case] register: Register, #[case] value: u32) {
    let mut bench = Bench::at(State::QueueReady);
    bench.write(Register::QueueReady, 0);
    bench.write(register, value);
    bench.write(Register::QueueReady, 1);

    bench.write(Register::Status, 15);

    assert!(bench.log().activations.is_empty());
    assert_eq!(bench.read(Register::Status), 15 | DeviceStatus::NEEDS_RESET);
    assert_eq!(bench.read(Register::InterruptStatus), 2);
}

#[test]
fn a_ready_queue_without_a_size_fails_activation() {
    let mut bench = Bench::at(State::FeaturesOk);
    bench.write(Register::QueueReady, 1);

    bench.write(Register::Status, 15);

    assert_eq!(bench.read(Register::Status), 15 | DeviceStatus::NEEDS_RESET);
}

#[test]
fn a_device_that_refuses_needs_a_reset_and_works_after_it() {
    let mut bench = Bench::at(State::QueueReady);
    bench.log().refuses = true;
    bench.write(Register::Status, 15);
    assert_eq!(bench.read(Register::Status), 15 | DeviceStatus::NEEDS_RESET);
    bench.log().refuses = false;

    let addresses = bench.addresses();
    let status = activate(&mut bench.transport, OFFERED, &[addresses]);

    assert_eq!(status, 15);
    assert_eq!(bench.workers.running(), 1);
}

#[test]
fn reset_leads_back_to_the_start_from_every_state() {
    for &state in State::ALL {
        let mut bench = Bench::at(state);
        let resets = bench.log().resets;

        bench.write(Register::Status, 0);

        let fresh = format!("{:?}", Bench::new().transport);
        assert_eq!(format!("{:?}", bench.transport), fresh, "from {state:?}");
        let reads = [Register::Status, Register::InterruptStatus].map(|it| bench.read(it));
        assert_eq!(reads, [0, 0], "from {state:?}");
        assert_eq!(bench.workers.running(), 0, "from {state:?}");
        assert_eq!(bench.log().resets, resets + 1, "from {state:?}");
    }
}

#[test]
fn the_worker_is_gone_before_the_device_is_reset() {
    let mut bench = Bench::at(State::Live);

    bench.write(Register::Status, 0);

    assert_eq!(bench.log().dropped_before_reset, 1);
}

#[test]
fn a_driver_that_fails_stops_the_worker_and_then_the_device() {
    let mut bench = Bench::at(State::Live);

    bench.write(Register::Status, 15 | 128);

    assert_eq!(bench.workers.running(), 0);
    assert!(!bench.transport.status().is_live());
    let log = bench.log();
    assert_eq!((log.resets, log.dropped_before_reset), (1, 1));
}

#[test]
fn a_dropped_transport_stops_its_worker() {
    let bench = Bench::at(State::Live);

    drop(bench.transport);

    assert_eq!(bench.workers.running(), 0);
    assert_eq!(bench.log.lock().unwrap().dropped, 1);
}

#[test]
fn a_device_lives_again_and_again() {
    let mut bench = Bench::new();
    let addresses = bench.addresses();

    for round in 1..=100 {
        assert_eq!(activate(&mut bench.transport, OFFERED, &[addresses]), 15);
        assert_eq!(bench.workers.running(), 1);
        assert_eq!(bench.log().activations.len(), round);
    }
}

#[test]
fn impossible_queues_of_a_device_are_refused() {
    let transport = |queue_sizes| {
        let device = Probe {
            log: SharedLog::default(),
            queue_sizes,
        };
        MmioTransport::new(
            Box::new(device),
            testing::memory(MEMORY),
            testing::interrupt(),
            Arc::new(LocalWorkers::new()),
        )
        .map(|_| ())
    };

    assert!(matches!(
        transport(vec![16, 100]),
        Err(TransportError::QueueSize {
            index: 1,
            size: 100
        })
    ));
    assert!(matches!(
        transport(vec![1; 1 << 16]),
        Err(TransportError::TooManyQueues(0x10000))
    ));
}

/// Workers that take none.
struct NoWorkers;

impl Workers for NoWorkers {
    fn start(&self, _: Worker) -> Result<WorkerId, WorkerError> {
        Err(WorkerError::Ended)
    }

    fn stop(&self, _: WorkerId) {}
}

#[test]
fn a_worker_that_cannot_start_fails_activation() {
    let bench = Bench::new();
    let device = Probe {
        log: Arc::clone(&bench.log),
        queue_sizes: vec![MAX_SIZE],
    };
    let mut transport = MmioTransport::new(
        Box::new(device),
        bench.memory.clone(),
        testing::interrupt(),
        Arc::new(NoWorkers),
    )
    .unwrap();

    let status = activate(&mut transport, OFFERED, &[bench.addresses()]);

    assert_eq!(status, 15 | DeviceStatus::NEEDS_RESET);
    assert_eq!(bench.log().dropped, 1);
}
