// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transport, register by register, in every state of the life cycle.

use std::sync::{Arc, Mutex};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{
    self, Driver, LocalWorkers, activate, read_register, set_up_queue, write_register,
};
use coracle_virtio::{
    ActivateError, Active, CONFIG_OFFSET, DeviceStatus, DeviceType, Interrupt, MMIO_WINDOW_SIZE,
    MmioTransport, NOTIFY_OFFSET, QueueAddresses, Register, TransportError, VirtioDevice, Worker,
    WorkerError, WorkerId, Workers, features,
};
use event_manager::{EventOps, Events, MutEventSubscriber};
use proptest::prelude::*;
use rstest::rstest;

const OWN_FEATURE: u64 = 1 << 3;
const OFFERED: u64 = OWN_FEATURE | features::RING | features::VERSION_1;
const MEMORY: u64 = 1 << 20;
const MAX_SIZE: u16 = 16;

/// What happened to a device, for the test to look at.
#[derive(Debug, Default)]
struct Log {
    activations: Vec<(u64, Vec<u16>)>,
    resets: usize,
    /// How many workers were dropped, when the last reset came.
    dropped_before_reset: usize,
    dropped: usize,
    config: [u8; 8],
    refuses: bool,
    has_no_worker: bool,
    interrupt: Option<Interrupt>,
}

type SharedLog = Arc<Mutex<Log>>;

struct Probe {
    log: SharedLog,
    queue_sizes: Vec<u16>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        OWN_FEATURE | features::RING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let log = self.log.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let part = log.config.get(offset..offset + data.len()).unwrap_or(&[]);
        data[..part.len()].copy_from_slice(part);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.log.lock().unwrap().config[offset..offset + data.len()].copy_from_slice(data);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        let mut log = self.log.lock().unwrap();
        let queues = active.queues.iter().map(|queue| queue.index).collect();
        log.activations.push((active.features, queues));
        log.interrupt = Some(active.interrupt);
        if log.refuses {
            return Err(ActivateError::device("no"));
        }
        Ok((!log.has_no_worker).then(|| {
            let log = Arc::clone(&self.log);
            Box::new(ProbeWorker { log }) as Worker
        }))
    }

    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        log.resets += 1;
        log.dropped_before_reset = log.dropped;
    }
}

struct ProbeWorker {
    log: SharedLog,
}

impl MutEventSubscriber for ProbeWorker {
    fn process(&mut self, _: Events, _: &mut EventOps) {}
    fn init(&mut self, _: &mut EventOps) {}
}

impl Drop for ProbeWorker {
    fn drop(&mut self) {
        self.log.lock().unwrap().dropped += 1;
    }
}

struct Bench {
    transport: MmioTransport,
    memory: GuestMemory,
    workers: Arc<LocalWorkers>,
    log: SharedLog,
}

impl Bench {
    fn new() -> Self {
        let log = SharedLog::default();
        let memory = testing::memory(MEMORY);
        let workers = Arc::new(LocalWorkers::new());
        let device = Probe {
            log: Arc::clone(&log),
            queue_sizes: vec![MAX_SIZE, MAX_SIZE],
        };
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            testing::interrupt(),
            workers.clone(),
        )
        .unwrap();
        Self {
            transport,
            memory,
            workers,
            log,
        }
    }

    /// A bench whose driver has got as far as `state`.
    fn at(state: State) -> Self {
        let mut bench = Self::new();
        for step in state.steps() {
            step(&mut bench);
        }
        bench
    }

    fn read(&mut self, register: Register) -> u32 {
        read_register(&mut self.transport, register)
    }

    fn write(&mut self, register: Register, value: u32) {
        write_register(&mut self.transport, register, value);
    }

    fn accept(&mut self, accepted: u64) {
        self.write(Register::DriverFeaturesSel, 0);
        self.write(Register::DriverFeatures, (accepted & 0xffff_ffff) as u32);
        self.write(Register::DriverFeaturesSel, 1);
        self.write(Register::DriverFeatures, (accepted >> 32) as u32);
    }

    fn addresses(&self) -> QueueAddresses {
        Driver::new(&self.memory, GuestAddress(0x1000), 0x4000, MAX_SIZE)
            .unwrap()
            .addresses()
    }

    /// All that the driver can change, and all that happened to the device.
    fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.transport, self.log.lock().unwrap())
    }
}

/// How far a driver has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Acknowledged,
    Driver,
    FeaturesOk,
    QueueReady,
    Live,
    NeedsReset,
    Failed,
}

type StepFn = fn(&mut Bench);

impl State {
    /// What a driver does to get there.
    fn steps(self) -> &'static [StepFn] {
        const ALL: [StepFn; 6] = [
            |bench| bench.write(Register::Status, 1),
            |bench| bench.write(Register::Status, 3),
            |bench| {
                bench.accept(OFFERED);
                bench.write(Register::Status, 11);
            },
            |bench| {
                let addresses = bench.addresses();
                set_up_queue(&mut bench.transport, 0, addresses);
            },
            |bench| bench.write(Register::Status, 15),
            |bench| {
                let interrupt = bench.log.lock().unwrap().interrupt.clone();
                interrupt.unwrap().needs_reset();
            },
        ];
        const FAIL: [StepFn; 1] = [|bench| bench.write(Register::Status, 128)];
        match self {
            Self::Start => &[],
            Self::Acknowledged => &ALL[..1],
            Self::Driver => &ALL[..2],
            Self::FeaturesOk => &ALL[..3],
            Self::QueueReady => &ALL[..4],
            Self::Live => &ALL[..5],
            Self::NeedsReset => &ALL[..6],
            Self::Failed => &FAIL,
        }
    }
}

const ANY: &[State] = &[
    State::Start,
    State::Acknowledged,
    State::Driver,
    State::FeaturesOk,
    State::QueueReady,
    State::Live,
    State::NeedsReset,
    State::Failed,
];
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
    (Register::DeviceFeaturesSel, ANY),
    (Register::DriverFeatures, NEGOTIATING),
    (Register::DriverFeaturesSel, ANY),
    (Register::QueueSel, ANY),
    (Register::QueueSizeMax, NEVER),
    (Register::QueueSize, SETTING_UP),
    (Register::QueueReady, CAN_BE_READY),
    (Register::QueueNotify, LIVE),
    (Register::InterruptStatus, NEVER),
    (Register::InterruptAck, ANY),
    (Register::Status, ANY),
    (Register::QueueDescLow, SETTING_UP),
    (Register::QueueDescHigh, SETTING_UP),
    (Register::QueueDriverLow, SETTING_UP),
    (Register::QueueDriverHigh, SETTING_UP),
    (Register::QueueDeviceLow, SETTING_UP),
    (Register::QueueDeviceHigh, SETTING_UP),
    (Register::ShmSel, ANY),
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
#[rstest]
fn a_register_is_writable_in_its_states_only(
    #[values(
        State::Start,
        State::Acknowledged,
        State::Driver,
        State::FeaturesOk,
        State::QueueReady,
        State::Live,
        State::NeedsReset,
        State::Failed
    )]
    state: State,
) {
    for (register, states) in WRITABLE {
        let mut bench = Bench::at(state);
        let (before, refused) = (bench.fingerprint(), bench.transport.refused_accesses());
        let value = u32::from(*register == Register::QueueSize);

        bench.write(*register, value);

        let may = states.contains(&state);
        let is_refused = bench.transport.refused_accesses() != refused;
        assert_eq!(is_refused, !may, "{register:?} in {state:?}");
        assert!(
            may || bench.fingerprint() == before,
            "{register:?} in {state:?}"
        );
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

    assert_eq!(bench.log.lock().unwrap().activations, [(OFFERED, vec![1])]);
    assert_eq!(bench.workers.running(), 1);
    assert_eq!(bench.read(Register::Status), 15);
}

#[test]
fn a_device_without_a_worker_is_live_all_the_same() {
    let mut bench = Bench::at(State::QueueReady);
    bench.log.lock().unwrap().has_no_worker = true;

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

    assert!(bench.log.lock().unwrap().activations.is_empty());
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
    bench.log.lock().unwrap().refuses = true;
    bench.write(Register::Status, 15);
    assert_eq!(bench.read(Register::Status), 15 | DeviceStatus::NEEDS_RESET);
    bench.log.lock().unwrap().refuses = false;

    let addresses = bench.addresses();
    let status = activate(&mut bench.transport, OFFERED, &[addresses]);

    assert_eq!(status, 15);
    assert_eq!(bench.workers.running(), 1);
}

#[rstest]
fn reset_leads_back_to_the_start_from(
    #[values(
        State::Start,
        State::Acknowledged,
        State::Driver,
        State::FeaturesOk,
        State::QueueReady,
        State::Live,
        State::NeedsReset,
        State::Failed
    )]
    state: State,
) {
    let mut bench = Bench::at(state);
    let resets = bench.log.lock().unwrap().resets;

    bench.write(Register::Status, 0);

    let fresh = Bench::new();
    assert_eq!(
        format!("{:?}", bench.transport),
        format!("{:?}", fresh.transport)
    );
    assert_eq!(bench.read(Register::Status), 0);
    assert_eq!(bench.read(Register::InterruptStatus), 0);
    assert_eq!(bench.workers.running(), 0);
    assert_eq!(bench.log.lock().unwrap().resets, resets + 1);
}

#[test]
fn the_worker_is_gone_before_the_device_is_reset() {
    let mut bench = Bench::at(State::Live);

    bench.write(Register::Status, 0);

    assert_eq!(bench.log.lock().unwrap().dropped_before_reset, 1);
}

#[test]
fn a_driver_that_fails_stops_the_worker_and_then_the_device() {
    let mut bench = Bench::at(State::Live);

    bench.write(Register::Status, 15 | 128);

    assert_eq!(bench.workers.running(), 0);
    assert!(!bench.transport.status().is_live());
    let log = bench.log.lock().unwrap();
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
        assert_eq!(bench.log.lock().unwrap().activations.len(), round);
    }
}

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
    let interrupt = bench.log.lock().unwrap().interrupt.clone().unwrap();
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

    let interrupt = bench.log.lock().unwrap().interrupt.clone().unwrap();
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
    bench.log.lock().unwrap().config = [1, 2, 3, 4, 5, 6, 7, 8];
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

    assert_eq!(bench.log.lock().unwrap().config[0] == 9, may);
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
    assert_eq!(bench.log.lock().unwrap().dropped, 1);
}

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
        for features in features_of(&bench.log.lock().unwrap()) {
            prop_assert_eq!(features & !OFFERED, 0);
            prop_assert_ne!(features & features::VERSION_1, 0);
        }
        let addresses = bench.addresses();
        prop_assert_eq!(activate(&mut bench.transport, OFFERED, &[addresses]), 15);
    }
}
