// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device, and what all devices with a back end have in common.

use std::os::unix::net::UnixStream;

use coracle_devices::fs::{FsError, file_system};
use coracle_devices::vhost_user::{BackendError, PATIENCE, VhostUserError};
use coracle_memory::GuestMemory;
use coracle_virtio::testing::read_register;
use coracle_virtio::{CONFIG_OFFSET, Register, VirtioDevice, features};
use rstest::rstest;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use crate::guest::{Guest, drivers, eventually, ranges, shared_memory};
use crate::reverse::{Reverse, backend};

fn guest(stream: UnixStream, memory: &GuestMemory) -> Guest {
    Guest::new(file_system(stream, "share", 1, PATIENCE).unwrap(), memory)
}

#[test]
fn request_goes_to_the_backend_and_its_answer_back() {
    let (_daemon, stream) = backend(Reverse::default());
    let mut guest = guest(stream, &shared_memory());
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

    let device = file_system(stream, "share", 1, PATIENCE).unwrap();

    assert_eq!(device.features(), features::RING);
}

#[rstest]
#[case::tag(0, b"shar")]
#[case::padding(32, &[0; 4])]
#[case::queues(36, &1u32.to_le_bytes())]
#[case::past_the_end(40, &[0; 4])]
fn configuration_space_reads_as_specified(#[case] offset: u64, #[case] expected: &[u8]) {
    let (_daemon, stream) = backend(Reverse::default());
    let mut guest = guest(stream, &shared_memory());
    let mut data = [0xaa; 4];

    guest.transport.read(CONFIG_OFFSET + offset, &mut data);

    assert_eq!(data, expected);
}

#[test]
fn device_works_again_after_a_reset() {
    let (_daemon, stream) = backend(Reverse::default());
    let memory = shared_memory();
    let mut guest = guest(stream, &memory);
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
    let mut guest = guest(stream, &shared_memory());
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
    let mut guest = guest(stream, &shared_memory());
    daemon.request_shutdown();
    daemon.wait().unwrap();

    guest.activate();

    assert!(guest.needs_reset());
    assert!(guest.lost.read().is_ok());
}

#[test]
fn reset_after_the_loss_ends_and_activation_fails() {
    let (mut daemon, stream) = backend(Reverse::default());
    let mut guest = guest(stream, &shared_memory());
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
    let mut guest = guest(stream, &memory);

    guest.activate();

    assert!(guest.needs_reset());
}

#[rstest]
#[case::old_virtio(Reverse { features: VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), ..Reverse::default() })]
#[case::no_protocol_features(Reverse { features: features::VERSION_1, ..Reverse::default() })]
#[case::one_queue_only(Reverse { protocol: VhostUserProtocolFeatures::REPLY_ACK, ..Reverse::default() })]
#[case::too_few_queues(Reverse { queues: 1, ..Reverse::default() })]
fn backend_without_what_is_needed_is_refused(#[case] shape: Reverse) {
    let (_daemon, stream) = backend(shape);

    let error = file_system(stream, "share", 1, PATIENCE).unwrap_err();

    assert!(matches!(
        error,
        FsError::VhostUser(VhostUserError::Backend {
            source: BackendError::NotOffered(_) | BackendError::Queues { .. },
            ..
        })
    ));
}

#[test]
fn peer_that_hangs_up_at_once_is_an_error() {
    let (stream, peer) = UnixStream::pair().unwrap();
    drop(peer);

    let error = file_system(stream, "share", 1, PATIENCE).unwrap_err();

    assert!(matches!(
        error,
        FsError::VhostUser(VhostUserError::Backend {
            source: BackendError::Request { .. },
            ..
        })
    ));
}

#[test]
fn nonblocking_socket_is_made_to_wait() {
    let (_daemon, stream) = backend(Reverse::default());
    stream.set_nonblocking(true).unwrap();

    assert!(file_system(stream, "share", 1, PATIENCE).is_ok());
}
