// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device's configuration space and life cycle.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_virtio::{ActivateError, Active, DeviceType, VirtioDevice, Worker, features as ring};
use thiserror::Error;

use super::backend::{Tap, TapError};
use super::features;
use super::worker::{Link, NetWorker};
use crate::config_space;
use crate::serve::Fault;

/// The least MTU that a device may tell its driver (virtio 1.3, section 5.1.4.1): IPv4's.
pub const MIN_MTU: u16 = 68;

/// Receive queue, transmit queue, control queue (section 5.1.2).
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Address, status, pairs of queues and MTU (section 5.1.4). The fields behind them belong to features
/// that are not offered.
const CONFIG_SIZE: usize = 12;
const QUEUE_PAIRS: u16 = 1;
/// Status: the link is up.
const LINK_UP: u16 = 1;

/// A network device that cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// Not the address of one interface.
    #[error("{0:02x?} is not the Ethernet address of an interface")]
    Address([u8; 6]),
    /// A network that IPv4 does not work on.
    #[error("an MTU of {0} bytes is less than {MIN_MTU}")]
    Mtu(u16),
    /// The tap cannot be used.
    #[error("the network device {mac:02x?} cannot use its tap")]
    Tap {
        /// The device's address.
        mac: [u8; 6],
        /// The reason.
        source: TapError,
    },
}

/// A virtio network device over a tap.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    link: Arc<Link>,
    fault: Fault,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("mac", &format_args!("{:02x?}", self.mac))
            .field("mtu", &self.mtu)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A device with the address `mac`, which sends to and receives from `tap`: an open tap made
    /// with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, which nothing else uses. Of `mtu`, at least
    /// [`MIN_MTU`], the driver is told; the host's end is for whoever made the tap to set up.
    ///
    /// # Errors
    ///
    /// [`NetError`] for an address or an MTU that is not possible, or a descriptor that is no such tap.
    pub fn new(tap: OwnedFd, mac: [u8; 6], mtu: Option<u16>) -> Result<Self, NetError> {
        let is_group = mac[0] & 1 != 0;
        if is_group || mac == [0; 6] {
            return Err(NetError::Address(mac));
        }
        if let Some(mtu) = mtu
            && mtu < MIN_MTU
        {
            return Err(NetError::Mtu(mtu));
        }
        let tap = Tap::new(tap).map_err(|source| NetError::Tap { mac, source })?;
        Ok(Self::over(tap, mac, mtu))
    }

    pub(super) fn over(tap: Tap, mac: [u8; 6], mtu: Option<u16>) -> Self {
        Self {
            mac,
            mtu,
            link: Arc::new(Link::new(tap, mac)),
            fault: Fault::new("net"),
        }
    }

    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let status = if self.link.is_up() { LINK_UP } else { 0 };
        let mut config = [0; CONFIG_SIZE];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&QUEUE_PAIRS.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mut offered = ring::RING | features::EVERY_TAP;
        if self.link.tap().can_cut_udp() {
            offered |= features::UDP_SEGMENTATION;
        }
        if self.mtu.is_some() {
            offered |= features::MTU;
        }
        offered
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config_space(), offset, data);
    }

    // Nothing in it is to be written: an address of the driver's own is not offered.

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        let worker = NetWorker::new(active, Arc::clone(&self.link), self.fault.clone())?;
        Ok(Some(Box::new(worker)))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rstest::rstest;

    use super::*;

    const ADDRESS: [u8; 6] = [0x02, 0, 0, 0, 0, 0x17];

    /// Over something that stands for a tap.
    fn net(mtu: Option<u16>) -> Net {
        let (ours, _) = UnixDatagram::pair().unwrap();
        Net::over(Tap::unchecked(ours.into()), ADDRESS, mtu)
    }

    fn no_tap() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn configuration_tells_address_link_and_mtu() {
        let mut config = [0xff; 16];

        net(Some(1500)).read_config(0, &mut config);

        let [mac, rest] = [&config[..6], &config[6..]];
        assert_eq!(mac, ADDRESS);
        assert_eq!(rest, [1, 0, 1, 0, 0xdc, 0x05, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn configuration_is_not_to_be_written() {
        let mut net = net(None);

        net.write_config(0, &[0xaa; 6]);

        let mut address = [0; 6];
        net.read_config(0, &mut address);
        assert_eq!(address, ADDRESS);
    }

    #[rstest]
    #[case::not_known(None, 0)]
    #[case::known(Some(9000), features::MTU)]
    fn mtu_is_offered_if_it_is_known(#[case] mtu: Option<u16>, #[case] expected: u64) {
        assert_eq!(net(mtu).features() & features::MTU, expected);
    }

    #[rstest]
    #[case::group([0x01, 0, 0x5e, 0, 0, 1])]
    #[case::broadcast([0xff; 6])]
    #[case::nobody([0; 6])]
    fn impossible_address_is_refused(#[case] mac: [u8; 6]) {
        let error = Net::new(no_tap(), mac, None).unwrap_err();

        assert!(matches!(error, NetError::Address(refused) if refused == mac));
    }

    #[test]
    fn impossible_mtu_is_refused() {
        let error = Net::new(no_tap(), ADDRESS, Some(MIN_MTU - 1)).unwrap_err();

        assert!(matches!(error, NetError::Mtu(67)));
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let error = Net::new(no_tap(), ADDRESS, None).unwrap_err();

        assert!(
            matches!(&error, NetError::Tap { source: TapError::Request { request, .. }, .. } if *request == "TUNGETIFF"),
            "{error:?}"
        );
    }
}
