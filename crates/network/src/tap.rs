// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tap interfaces: Ethernet on one side, a descriptor on the other.

use std::ffi::c_short;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::NetworkError;
use crate::netlink::link::Link;

/// Frames without a prefix, each behind the header by which virtio tells of checksums and segments.
const FLAGS: c_short = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;

/// Fails where the interface exists: attaching to another's by accident would be worse.
const EXCLUSIVE: c_short = libc::IFF_TUN_EXCL as c_short;

/// Makes a tap of this name in the thread's network namespace. It lives as long as its descriptors.
pub(crate) fn create(name: &str) -> Result<OwnedFd, NetworkError> {
    let fd = open_device()?;
    set_interface(&fd, name, FLAGS | EXCLUSIVE).map_err(|source| NetworkError::TapCreate {
        name: name.to_owned(),
        source,
    })?;
    Ok(fd)
}

/// Opens a tap that exists, made by somebody else.
pub(crate) fn open(link: &Link) -> Result<OwnedFd, NetworkError> {
    let unusable = |reason: &str| NetworkError::TapUnusable {
        name: link.name.clone(),
        reason: reason.to_owned(),
    };
    // The kernel's refusals of all of these cases read the same.
    let Some(tun) = link.tun else {
        return Err(unusable(&format!(
            "it is not a tap, but of kind {:?}",
            link.kind
        )));
    };
    if !tun.is_tap {
        return Err(unusable(
            "it is a tun, which carries IP packets: make it with `ip tuntap add mode tap`",
        ));
    }
    if tun.is_multi_queue {
        return Err(unusable(
            "it is made for several queues: make it without `multi_queue`",
        ));
    }
    let fd = open_device()?;
    set_interface(&fd, &link.name, FLAGS).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => unusable("another process has it open"),
        Some(libc::EPERM) => unusable("it belongs to another user: run as root, or as its user"),
        _ => unusable(&source.to_string()),
    })?;
    Ok(fd)
}

fn open_device() -> Result<OwnedFd, NetworkError> {
    rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(|error| NetworkError::Tun {
        source: error.into(),
    })
}

/// The ioctl that makes an interface, or attaches to one.
fn set_interface(fd: &OwnedFd, name: &str, flags: c_short) -> io::Result<()> {
    // SAFETY: all of the structure's fields are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq` at this address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
