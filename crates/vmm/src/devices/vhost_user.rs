// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks and network cards that other processes serve.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use coracle_devices::vhost_user::{PATIENCE, VhostUserDevice, block, net};
use event_manager::EventSet;

use super::DeviceError;
use crate::config::VhostUser;
use crate::event_loop::EventLoop;

/// A device of another process. The machine goes on without it, since nothing of its own is on it: the guest is told,
/// and the operator by standard error.
pub(super) fn make(
    index: usize,
    device: VhostUser<OwnedFd>,
    event_loop: &mut EventLoop,
) -> Result<VhostUserDevice, DeviceError> {
    let made = match device {
        VhostUser::Block { socket } => block(UnixStream::from(socket), PATIENCE),
        VhostUser::Net { socket, mac, mtu } => net(UnixStream::from(socket), mac, mtu, PATIENCE),
    };
    let device = made.map_err(|source| DeviceError::VhostUser {
        index,
        source: Box::new(source),
    })?;
    let lost = device
        .connection_lost()
        .map_err(|source| DeviceError::VhostUserWatch { index, source })?;
    event_loop.watch(lost, EventSet::IN, move || {
        eprintln!(
            "coracle vmm: the back end of vhost-user device {index} is gone, and its device with it"
        );
    });
    Ok(device)
}
