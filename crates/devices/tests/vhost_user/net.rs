// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network card.

use coracle_devices::vhost_user::{PATIENCE, net};
use coracle_virtio::{DeviceType, VirtioDevice, features};
use rstest::rstest;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use crate::guest::{Guest, eventually, shared_memory};
use crate::reverse::{Reverse, backend};

const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

#[rstest]
#[case::as_usual(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)]
#[case::one_pair_of_queues(VhostUserProtocolFeatures::REPLY_ACK)]
#[case::no_acknowledgements(VhostUserProtocolFeatures::MQ)]
#[case::nothing(VhostUserProtocolFeatures::empty())]
fn packet_goes_to_the_back_end_whatever_its_protocol(#[case] protocol: VhostUserProtocolFeatures) {
    let (_daemon, stream) = backend(Reverse {
        protocol,
        ..Reverse::default()
    });
    let mut guest = Guest::new(net(stream, MAC, None, PATIENCE).unwrap(), &shared_memory());
    guest.activate();

    let answer = guest.request(b"packet");

    assert_eq!(answer.data, b"tekcap");
}

#[test]
fn address_and_mtu_are_the_guests_and_not_the_back_ends() {
    let (_daemon, stream) = backend(Reverse::default());

    let device = net(stream, MAC, Some(1400), PATIENCE).unwrap();

    let mut config = [0; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0x78, 0x05]);
    assert_eq!(device.device_type(), DeviceType::Net);
    assert_eq!(device.features(), features::RING | 1 << 3 | 1 << 5);
}

#[test]
fn features_that_are_not_passed_on_are_not_offered() {
    let (_daemon, stream) = backend(Reverse {
        features: u64::MAX,
        ..Reverse::default()
    });

    let offered = net(stream, MAC, None, PATIENCE).unwrap().features();

    assert_eq!(offered & 1 << 3, 0, "an MTU that is not known");
    assert_eq!(offered & 1 << 17, 0, "a control queue");
    assert_eq!(offered & 1 << 22, 0, "more queues");
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(offered & protocol, 0, "what belongs to the connection");
    assert_eq!(offered & 0x7f83, 0x7f83, "checksums and segmentation");
}

#[test]
fn lost_back_end_is_told_to_guest_and_monitor() {
    let (daemon, stream) = backend(Reverse::default());
    let mut guest = Guest::new(net(stream, MAC, None, PATIENCE).unwrap(), &shared_memory());
    guest.activate();

    daemon.request_shutdown();

    eventually(|| {
        guest.workers.run();
        guest.lost.read().ok()
    });
    assert!(guest.needs_reset());
}
