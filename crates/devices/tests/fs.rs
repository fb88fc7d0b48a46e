// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device against a backend written by others: rust-vmm's vhost-user daemon and
//! virtqueue, with a driver of ours on the guest's side.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use coracle_devices::fs::{BackendError, FsError, VhostUserFs};
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, LocalWorkers, Used, activate, interrupt, read_register};
use coracle_virtio::{
    CONFIG_OFFSET, DeviceStatus, Interrupt, MmioTransport, Register, VirtioDevice, features,
};
use rstest::rstest;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::EventFd;

const QUEUES: usize = 2;
const REQUESTS: usize = 1;
const REGION: u64 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers each request with its bytes in reverse.
#[derive(Clone, Copy)]
struct Reverse {
    features: u64,
    queues: usize,
}

impl Default for Reverse {
    fn default() -> Self {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        Reverse {
            features: features::VERSION_1 | features::RING | protocol,
            queues: QUEUES,
        }
    }
}

struct Backend {
    shape: Reverse,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.shape.queues
    }

    fn max_queue_size(&self) -> usize {
        128
    }

    fn features(&self) -> u64 {
        self.shape.features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().unwrap().memory();
        let vring = &vrings[usize::from(queue)];
        let chains: Vec<_> = {
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.iter(memory.clone()).unwrap().collect()
        };
        for chain in chains {
            let mut bytes = Vec::new();
            let head = chain.head_index();
            let mut request = chain.clone().reader(&memory).unwrap();
            request.read_to_end(&mut bytes).unwrap();
            bytes.reverse();
            chain.writer(&memory).unwrap().write_all(&bytes).unwrap();
            vring.add_used(head, bytes.len() as u32).unwrap();
        }
        vring.signal_used_queue()
    }
}

/// A running daemon, and the frontend's end of its connection.
fn backend(shape: Reverse) -> (VhostUserDaemon<Arc<RwLock<Backend>>>, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fs.sock");
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend {
        shape,
        memory: None,
    };
    let backend = Arc::new(RwLock::new(backend));
    let mut daemon = VhostUserDaemon::new("reverse".to_owned(), backend, memory).unwrap();
    let mut listener = Listener::new(&path, true).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    daemon.start(&mut listener).unwrap();
    (daemon, stream)
}

/// A virtual machine reduced to what the device sees of it.
struct Guest {
    transport: MmioTransport,
    queues: Vec<Driver>,
    workers: Arc<LocalWorkers>,
    interrupt: Interrupt,
    lost: EventFd,
}

impl Guest {
    fn new(stream: UnixStream, memory: &GuestMemory) -> Self {
        let device = VhostUserFs::new(stream, "share", 1).unwrap();
        let lost = device.connection_lost().unwrap();
        let workers = Arc::new(LocalWorkers::new());
        let interrupt = interrupt();
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt.clone(),
            Arc::clone(&workers) as Arc<_>,
        )
        .unwrap();
        Guest {
            transport,
            queues: drivers(memory),
            workers,
            interrupt,
            lost,
        }
    }

    fn activate(&mut self) {
        let addresses: Vec<_> = self.queues.iter().map(Driver::addresses).collect();
        let wanted = features::VERSION_1 | features::RING_INDIRECT_DESC;
        activate(&mut self.transport, wanted, &addresses);
    }

    fn request(&mut self, request: &[u8]) -> Used {
        let driver = &mut self.queues[REQUESTS];
        driver.add(&[request], &[64]).unwrap();
        self.transport.kicks()[REQUESTS].write(1).unwrap();
        eventually(|| driver.used().unwrap())
    }

    fn needs_reset(&mut self) -> bool {
        let status = read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }
}

/// A driver per queue, each in a region of its own, so that both regions have to be mapped.
fn drivers(memory: &GuestMemory) -> Vec<Driver> {
    memory
        .regions()
        .iter()
        .map(|region| {
            memory.write(region.start(), &[0; 0x1_0000]).unwrap();
            Driver::new(memory, region.start(), 0x1_0000, 16).unwrap()
        })
        .collect()
}

fn ranges() -> [(GuestAddress, u64); QUEUES] {
    [
        (GuestAddress(0), REGION),
        (GuestAddress(4 * REGION), REGION),
    ]
}

fn shared_memory() -> GuestMemory {
    GuestMemory::shared(&ranges()).unwrap()
}

/// What `attempt` gives in the end; fails after [`PATIENCE`].
fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "nothing within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn request_goes_to_the_backend_and_its_answer_back() {
    let (_daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(stream, &shared_memory());
    guest.activate();

    let answer = guest.request(b"FUSE");

    assert_eq!(answer.data, b"ESUF");
    eventually(|| guest.interrupt.line().read().ok());
    let reasons = read_register(&mut guest.transport, Register::InterruptStatus);
    assert_eq!(reasons & 1, 1, "the driver is told to look");
}

#[test]
fn features_of_the_connection_are_not_the_guests() {
    let (_daemon, stream) = backend(Reverse {
        features: u64::MAX,
        ..Reverse::default()
    });

    let device = VhostUserFs::new(stream, "share", 1).unwrap();

    assert_eq!(device.features(), features::RING);
}

#[rstest]
#[case::tag(0, b"shar")]
#[case::padding(32, &[0; 4])]
#[case::queues(36, &1u32.to_le_bytes())]
#[case::past_the_end(40, &[0; 4])]
fn configuration_space_reads_as_specified(#[case] offset: u64, #[case] expected: &[u8]) {
    let (_daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(stream, &shared_memory());
    let mut data = [0xaa; 4];

    guest.transport.read(CONFIG_OFFSET + offset, &mut data);

    assert_eq!(data, expected);
}

#[test]
fn device_works_again_after_a_reset() {
    let (_daemon, stream) = backend(Reverse::default());
    let memory = shared_memory();
    let mut guest = Guest::new(stream, &memory);
    guest.activate();
    guest.request(b"first");

    guest.queues = drivers(&memory);
    guest.activate();
    let answer = guest.request(b"second");

    assert_eq!(answer.data, b"dnoces");
}

#[test]
fn lost_backend_is_reported_to_guest_and_monitor() {
    let (daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(stream, &shared_memory());
    guest.activate();
    assert_eq!(guest.workers.run(), 0, "a backend that lives is no event");

    daemon.request_shutdown();

    eventually(|| {
        guest.workers.run();
        guest.lost.read().ok()
    });
    assert!(guest.needs_reset());
    assert_eq!(guest.workers.run(), 0, "one event only");
}

#[test]
fn backend_lost_before_activation_is_reported() {
    let (mut daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(stream, &shared_memory());
    daemon.request_shutdown();
    daemon.wait().unwrap();

    guest.activate();

    assert!(guest.needs_reset());
    assert!(guest.lost.read().is_ok());
}

#[test]
fn reset_after_the_loss_ends_and_activation_fails() {
    let (mut daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(stream, &shared_memory());
    guest.activate();
    daemon.request_shutdown();
    daemon.wait().unwrap();

    guest.activate();

    assert!(guest.needs_reset());
}

#[test]
fn private_memory_is_refused() {
    let (_daemon, stream) = backend(Reverse::default());
    let memory = GuestMemory::anonymous(&ranges()).unwrap();
    let mut guest = Guest::new(stream, &memory);

    guest.activate();

    assert!(guest.needs_reset());
}

#[rstest]
#[case::old_virtio(Reverse { features: VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), ..Reverse::default() })]
#[case::no_protocol_features(Reverse { features: features::VERSION_1, ..Reverse::default() })]
#[case::too_few_queues(Reverse { queues: 1, ..Reverse::default() })]
fn backend_without_what_is_needed_is_refused(#[case] shape: Reverse) {
    let (_daemon, stream) = backend(shape);

    let error = VhostUserFs::new(stream, "share", 1).unwrap_err();

    assert!(matches!(
        error,
        FsError::Backend {
            source: BackendError::NotOffered(_) | BackendError::Queues { .. },
            ..
        }
    ));
}

#[test]
fn peer_that_hangs_up_at_once_is_an_error() {
    let (stream, peer) = UnixStream::pair().unwrap();
    drop(peer);

    let error = VhostUserFs::new(stream, "share", 1).unwrap_err();

    assert!(matches!(
        error,
        FsError::Backend {
            source: BackendError::Request { .. },
            ..
        }
    ));
}

#[test]
fn nonblocking_socket_is_made_to_wait() {
    let (_daemon, stream) = backend(Reverse::default());
    stream.set_nonblocking(true).unwrap();

    let device = VhostUserFs::new(stream, "share", 1).unwrap();

    assert_eq!(device.tag(), "share");
}
