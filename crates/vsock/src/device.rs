// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device: its identity, features and configuration, and its life cycle.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_virtio::{ActivateError, Active, DeviceType, VirtioDevice, Worker, features};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::endpoint::{Endpoint, EndpointError};
use crate::limits::Limits;
use crate::mux::Mux;
use crate::packet::FIRST_GUEST_CID;
use crate::worker::VsockWorker;

/// Feature bit: stream sockets (`VIRTIO_VSOCK_F_STREAM`).
const F_STREAM: u64 = 1 << 0;

/// The highest context identifier: 32 bits, of which all ones means any.
const LAST_GUEST_CID: u64 = u32::MAX as u64 - 1;

/// Largest sizes of the queues: packets to the guest, packets from it, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Of how many activations a failure is logged: a driver can go through them for ever.
const LOGGED_ACTIVATIONS: u32 = 4;

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// The context identifier is reserved or too large.
    #[error(
        "context identifier {0} is not a guest's: those are {FIRST_GUEST_CID} to {LAST_GUEST_CID}"
    )]
    GuestCid(u64),
    /// There is no socket for the host's programs.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The host has no descriptor left.
    #[error("no eventfd for the vsock device")]
    EventFd(#[source] io::Error),
}

/// A virtio-vsock device whose connections go to Unix sockets of the host.
///
/// See the [crate's documentation](crate) for how the host's programs use it.
#[derive(Debug)]
pub struct VsockDevice {
    guest_cid: u64,
    limits: Limits,
    endpoint: Arc<Endpoint>,
    transport_reset: Arc<EventFd>,
    activations: u32,
}

/// Reaches a device that has been given to its transport. Clones reach the same device.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    transport_reset: Arc<EventFd>,
}

impl VsockDevice {
    /// A device for the guest with this context identifier, with a socket at `uds` that is listened
    /// on from now on. The socket's name is removed when the device is dropped.
    ///
    /// # Errors
    ///
    /// [`VsockError`] if the identifier cannot be a guest's, the path is longer than 96 bytes or
    /// exists, or the socket cannot be made.
    pub fn new(guest_cid: u64, uds: PathBuf) -> Result<Self, VsockError> {
        Self::with_limits(guest_cid, uds, Limits::default())
    }

    /// As [`new`](Self::new), with other limits than the default.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_limits(guest_cid: u64, uds: PathBuf, limits: Limits) -> Result<Self, VsockError> {
        if !(FIRST_GUEST_CID..=LAST_GUEST_CID).contains(&guest_cid) {
            return Err(VsockError::GuestCid(guest_cid));
        }
        let transport_reset =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VsockError::EventFd)?;
        Ok(Self {
            guest_cid,
            limits,
            endpoint: Arc::new(Endpoint::bind(uds)?),
            transport_reset: Arc::new(transport_reset),
            activations: 0,
        })
    }

    /// A handle for later, when the transport owns the device.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle {
            transport_reset: Arc::clone(&self.transport_reset),
        }
    }
}

impl VsockHandle {
    /// Drops all connections and tells the guest that they are gone (virtio 1.3, section 5.10.6.7):
    /// for a guest that was restored from a snapshot, whose connections do not exist any more.
    ///
    /// It takes effect on the worker's thread, soon. Before the driver is ready there is nothing to
    /// drop and nobody to tell, and a reset of the device forgets it.
    pub fn transport_reset(&self) {
        // Fails only when it was asked for 2^64 - 2 times, and is due in any case.
        let _ = self.transport_reset.write(1);
    }
}

impl VirtioDevice for VsockDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Not offered: indirect descriptors. A packet has one or two, so a table for each would cost
    /// the guest an allocation per packet and us another walk, for a ring that is deep enough as it
    /// is.
    fn features(&self) -> u64 {
        F_STREAM | features::RING_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        let endpoint = Arc::clone(&self.endpoint);
        let mux = Mux::new(self.guest_cid, endpoint, self.limits)
            .map_err(|errno| ActivateError::device(io::Error::from(errno)))?;
        self.activations = self.activations.saturating_add(1);
        let logs = self.activations <= LOGGED_ACTIVATIONS;
        let transport_reset = Arc::clone(&self.transport_reset);
        let worker = VsockWorker::new(active, mux, transport_reset, logs)?;
        Ok(Some(Box::new(worker)))
    }

    fn reset(&mut self) {
        // Nothing to take means that nothing was asked for.
        let _ = self.transport_reset.read();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn device(dir: &tempfile::TempDir) -> VsockDevice {
        VsockDevice::new(0x0102_0304, dir.path().join("vsock")).unwrap()
    }

    #[rstest]
    #[case::reserved_for_the_hypervisor(0)]
    #[case::loopback(1)]
    #[case::host(2)]
    #[case::any(u64::from(u32::MAX))]
    #[case::beyond_32_bits(1 << 32 | 3)]
    fn context_identifier_that_is_no_guests_is_refused(#[case] cid: u64) {
        let dir = tempfile::tempdir().unwrap();

        let error = VsockDevice::new(cid, dir.path().join("vsock")).unwrap_err();

        assert!(matches!(error, VsockError::GuestCid(refused) if refused == cid));
    }

    #[rstest]
    #[case::low_half(0, [4, 3, 2, 1])]
    #[case::high_half(4, [0; 4])]
    #[case::across_the_end(6, [0, 0, 0xaa, 0xaa])]
    #[case::past_the_end(8, [0xaa; 4])]
    #[case::far_past_the_end(u64::MAX, [0xaa; 4])]
    fn configuration_is_the_guests_context_identifier(
        #[case] offset: u64,
        #[case] expected: [u8; 4],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut data = [0xaa; 4];

        device(&dir).read_config(offset, &mut data);

        assert_eq!(data, expected);
    }

    #[test]
    fn socket_is_there_as_long_as_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let device = device(&dir);
        assert!(dir.path().join("vsock").exists());

        drop(device);

        assert!(!dir.path().join("vsock").exists());
    }
}
