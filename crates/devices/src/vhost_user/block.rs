// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk of another process.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_virtio::{DeviceType, features};

use super::device::{ConfigSpace, Kind, VhostUserDevice, VhostUserError};

/// As many as QEMU gives such a disk, whose storage daemon says that a request has 126 buffers of data.
const QUEUE_SIZE: u16 = 128;

/// The largest size and number of a request's buffers, geometry, read-only, block size, flushes, topology, discard,
/// write zeroes (virtio 1.3, section 5.2.3). Not the choice of caching, which would have to be passed on, nor more
/// queues, which the configuration space would then have to count.
const BLOCK_FEATURES: u64 =
    1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14;

/// A block device (virtio 1.3, section 5.2) with one queue, for the back end at the other end of `stream`, with which
/// features are agreed on before this returns, within `patience`. Size and shape are the back end's, as they are now:
/// later changes are not passed on.
///
/// # Errors
///
/// [`VhostUserError`] for a back end that does not answer or lacks what is needed: VIRTIO_F_VERSION_1 and the protocol
/// feature CONFIG.
pub fn block(stream: UnixStream, patience: Duration) -> Result<VhostUserDevice, VhostUserError> {
    let kind = Kind {
        name: "a block device".to_owned(),
        log: "vhost-user block",
        device_type: DeviceType::Block,
        queue_sizes: vec![QUEUE_SIZE],
        implied_queues: 1,
        backend_features: features::RING | BLOCK_FEATURES,
        own_features: 0,
        config: ConfigSpace::Backend,
    };
    VhostUserDevice::new(stream, kind, patience)
}
