// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network card that another process serves.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_virtio::{DeviceType, features};

use super::device::{ConfigSpace, Kind, VhostUserDevice, VhostUserError};

const QUEUE_SIZE: u16 = 256;
/// One to receive, one to transmit.
const QUEUES: usize = 2;

/// An Ethernet address.
pub type Mac = [u8; 6];

const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
/// Checksums and segmentation in both directions, received packets in several buffers (virtio 1.3, section 5.1.3).
const NET_FEATURES: u64 = 0b11 | 0b1111_1111 << 7 | 1 << 15;

/// Address, status, number of queue pairs, MTU.
const CONFIG_LEN: usize = 12;

/// A network card (virtio 1.3, section 5.1) with one pair of queues, for the back end at the other end of `stream`, with
/// which features are agreed on before this returns, within `patience`. Address and MTU are told to the guest; a back
/// end has no say in them.
///
/// # Errors
///
/// [`VhostUserError`] for a back end that does not answer or does not offer VIRTIO_F_VERSION_1.
pub fn net(
    stream: UnixStream,
    mac: Mac,
    mtu: Option<u16>,
    patience: Duration,
) -> Result<VhostUserDevice, VhostUserError> {
    let kind = Kind {
        name: format!("the network card {}", text(mac)),
        log: "vhost-user net",
        device_type: DeviceType::Net,
        queue_sizes: vec![QUEUE_SIZE; QUEUES],
        implied_queues: 2,
        backend_features: features::RING | NET_FEATURES,
        own_features: MAC | if mtu.is_some() { MTU } else { 0 },
        config: ConfigSpace::Own(space(mac, mtu).to_vec()),
    };
    VhostUserDevice::new(stream, kind, patience)
}

fn space(mac: Mac, mtu: Option<u16>) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    space[..mac.len()].copy_from_slice(&mac);
    space[10..].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
    space
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_mtu_are_where_the_standard_puts_them() {
        let found = space([2, 3, 4, 5, 6, 7], Some(0x1234));

        assert_eq!(found, [2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0x34, 0x12]);
    }

    #[test]
    fn address_is_written_as_people_write_it() {
        assert_eq!(text([2, 0, 0x5e, 0x10, 0, 0xff]), "02:00:5e:10:00:ff");
    }
}
