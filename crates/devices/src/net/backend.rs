// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's end of a network device: a tap.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Opcode, Setter, ioctl, opcode};
use thiserror::Error;

use super::queue::{HEADER_LEN, Offloads, Outgoing, Room};

/// Ioctls of `linux/if_tun.h`.
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNGETIFF: Opcode = opcode::read::<libc::c_uint>(b'T', 210);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<libc::c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<libc::c_int>(b'T', 220);

/// Offloads of `TUNSETOFFLOAD`.
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

/// Bytes of `struct ifreq`, and where the flags are in it.
const IFREQ: usize = 40;
const IFREQ_FLAGS: usize = 16;
/// What has to be set in the flags: `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
const TAP_FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// A tap that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapError {
    /// Something else, or made for another use.
    #[error("the tap has flags {0:#x}: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are not all among them")]
    Flags(u16),
    /// A request failed; all of them do on a descriptor that is no tap.
    #[error("the tap refuses {request}")]
    Request {
        /// The request's name.
        request: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn refused(request: &'static str) -> impl FnOnce(Errno) -> TapError {
    move |source| TapError::Request {
        request,
        source: source.into(),
    }
}

/// The tap was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tap of a network device is gone")]
pub(super) struct Gone;

/// What became of a packet that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The kernel has it, or has dropped it.
    Done,
    /// The host's interface is down. The tap can be written to once it is up.
    Down,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A packet of this many bytes.
    Packet(usize),
    /// A packet that is lost.
    Lost,
    /// There is none.
    Nothing,
}

/// A tap that frames are read from and written to, each behind a header of virtio.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    can_cut_udp: bool,
}

impl Tap {
    /// Takes a tap over: non-blocking, with the header of virtio 1, with no offloads yet.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, TapError> {
        // SAFETY: the kernel fills in a `struct ifreq`.
        let request = unsafe { ioctl(&fd, Getter::<TUNGETIFF, [u8; IFREQ]>::new()) }
            .map_err(refused("TUNGETIFF"))?;
        let flags = u16::from_le_bytes([request[IFREQ_FLAGS], request[IFREQ_FLAGS + 1]]);
        if flags & TAP_FLAGS != TAP_FLAGS {
            return Err(TapError::Flags(flags));
        }
        let header = libc::c_int::from(HEADER_LEN as u8);
        // SAFETY: the kernel reads an int.
        unsafe { ioctl(&fd, Setter::<TUNSETVNETHDRSZ, libc::c_int>::new(header)) }
            .map_err(refused("TUNSETVNETHDRSZ"))?;
        // SAFETY: as above.
        unsafe { ioctl(&fd, Setter::<TUNSETVNETLE, libc::c_int>::new(1)) }
            .map_err(refused("TUNSETVNETLE"))?;
        set_non_blocking(&fd).map_err(refused("O_NONBLOCK"))?;

        // Older kernels do not know the flags.
        let can_cut_udp = set_offload(&fd, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        set_offload(&fd, 0).map_err(refused("TUNSETOFFLOAD"))?;
        Ok(Self { fd, can_cut_udp })
    }

    /// Anything that keeps packets apart, in place of a tap.
    #[cfg(test)]
    pub(super) fn unchecked(fd: OwnedFd) -> Self {
        set_non_blocking(&fd).unwrap();
        Self {
            fd,
            can_cut_udp: true,
        }
    }

    /// Whether it has UDP segmentation.
    pub(super) const fn can_cut_udp(&self) -> bool {
        self.can_cut_udp
    }

    /// Lets the kernel leave `offloads` to whoever reads.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        let flags = [
            (offloads.checksum, TUN_F_CSUM),
            (offloads.tso4, TUN_F_TSO4),
            (offloads.tso6, TUN_F_TSO6),
            (offloads.ecn, TUN_F_TSO_ECN),
            (offloads.uso, TUN_F_USO4 | TUN_F_USO6),
        ];
        let flags = flags
            .iter()
            .filter(|(is_set, _)| *is_set)
            .fold(0, |flags, (_, flag)| flags | flag);
        set_offload(&self.fd, flags).map_err(refused("TUNSETOFFLOAD"))
    }

    /// Sends a packet. One that the kernel does not take is lost, as on any network.
    pub(super) fn send(&self, packet: &Outgoing<'_>) -> Result<Sent, Gone> {
        let error = packet.write_to(&self.fd).err();
        match error.as_ref().and_then(Errno::from_io_error) {
            Some(Errno::BADFD) => Err(Gone),
            Some(Errno::IO) => Ok(Sent::Down),
            _ => Ok(Sent::Done),
        }
    }

    /// Reads a packet.
    pub(super) fn receive(&self, room: Room<'_>) -> Result<Read, Gone> {
        match room.read_from(&self.fd) {
            Ok(len) => Ok(Read::Packet(len)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => Ok(Read::Nothing),
                // Of these the kernel gives at most one for a packet, which is then lost.
                Some(Errno::INTR | Errno::INVAL | Errno::FAULT | Errno::NOMEM) => Ok(Read::Lost),
                // The tap was deleted (EBADFD), or is something that will not come right.
                _ => Err(Gone),
            },
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn set_non_blocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

fn set_offload(fd: impl AsFd, flags: usize) -> rustix::io::Result<()> {
    // SAFETY: the argument is a value, not an address.
    unsafe { ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }
}
