// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of a tap, in a network namespace with nothing else: a packet socket on it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::frames::{self, GUEST};

/// For how long a packet is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
pub const IFF_TAP: i16 = 0x0002;
pub const IFF_NO_PI: i16 = 0x1000;
pub const IFF_VNET_HDR: i16 = 0x4000;

/// `packet(7)`.
const SOL_PACKET: libc::c_int = 263;
const PACKET_VNET_HDR: libc::c_int = 15;
const ETH_P_ALL: u16 = 3;

/// Bytes of the header that a packet socket puts before each packet: virtio's, without the number of
/// buffers.
pub const SHORT_HEADER: usize = 10;

/// A header that leaves nothing to others.
pub const PLAIN: [u8; SHORT_HEADER] = [0; SHORT_HEADER];

pub struct Host {
    name: [libc::c_char; libc::IFNAMSIZ],
    index: libc::c_int,
    packets: OwnedFd,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// What is missing for a tap, if anything is.
pub fn lack() -> Option<String> {
    leave()
        .and_then(|()| open_tap(IFF_TAP))
        .err()
        .map(|error| format!("there is no tap to be had: {error}"))
}

/// Leaves the host's network for an empty one.
fn leave() -> io::Result<()> {
    // SAFETY: a new network namespace changes no descriptor or memory that other code relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    // Or the host's end would talk by itself. A kernel without IPv6 has no such file.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    Ok(())
}

/// A request about the interface of this name.
fn request(name: [libc::c_char; libc::IFNAMSIZ]) -> libc::ifreq {
    // SAFETY: all zeroes are a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name;
    request
}

/// A tap with these flags, and its name.
pub fn open_tap(flags: i16) -> io::Result<(OwnedFd, libc::ifreq)> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request([0; libc::IFNAMSIZ]);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the kernel reads and writes the request.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok((tun.into(), request))
}

/// A namespace with a tap that is up, and its device's end.
pub fn tap() -> (Host, OwnedFd) {
    leave().unwrap();
    let (tap, request) = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).unwrap();
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) };
    let index = libc::c_int::try_from(index).unwrap();
    let host = Host {
        packets: packet_socket(index).unwrap(),
        name: request.ifr_name,
        index,
    };
    host.set_up(true);
    // That it was down is told once.
    let _ = rustix::io::read(&host.packets, &mut [0; 1][..]);
    (host, tap)
}

fn packet_socket(index: libc::c_int) -> io::Result<OwnedFd> {
    let protocol = ETH_P_ALL.to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a socket that is ours alone.
    let socket = unsafe {
        let socket = checked(libc::socket(libc::AF_PACKET, kind, protocol.into()))?;
        OwnedFd::from_raw_fd(socket)
    };
    for (level, option, value) in [
        (SOL_PACKET, PACKET_VNET_HDR, 1),
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20),
    ] {
        let value: libc::c_int = value;
        // SAFETY: the kernel reads an int.
        checked(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        })?;
    }
    // SAFETY: all zeroes are an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    // SAFETY: the kernel reads the address.
    checked(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

impl Host {
    /// Turns the host's end on or off.
    pub fn set_up(&self, up: bool) {
        let mut request = request(self.name);
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as i16 } else { 0 };
        // SAFETY: the kernel reads the request.
        checked(unsafe {
            libc::ioctl(
                self.packets.as_raw_fd(),
                libc::SIOCSIFFLAGS,
                &raw mut request,
            )
        })
        .unwrap();
    }

    /// Sends a frame to the guest. `false`: the tap is full.
    pub fn try_send(&self, header: &[u8; SHORT_HEADER], frame: &[u8]) -> bool {
        let packet = [header, frame].concat();
        match rustix::io::write(&self.packets, &packet) {
            Ok(len) => {
                assert_eq!(len, packet.len());
                true
            }
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn send(&self, header: &[u8; SHORT_HEADER], frame: &[u8]) {
        assert!(self.try_send(header, frame));
    }

    /// The next frame of the guest's that has arrived.
    pub fn try_receive(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        loop {
            let mut packet = vec![0; 70_000];
            match rustix::io::read(&self.packets, &mut packet[..]) {
                Ok(len) => {
                    packet.truncate(len);
                    let frame = packet.split_off(SHORT_HEADER);
                    if frames::source(&frame) == GUEST {
                        return Some((packet, frame));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return None,
                // It was down meanwhile, which is told once.
                Err(rustix::io::Errno::NETDOWN) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next frame of the guest's, with its header.
    pub fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        let since = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(since.elapsed() < PATIENCE, "nothing comes from the guest");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Deletes the tap, whoever has it.
    pub fn delete_tap(&self) {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a socket that is ours alone.
        let netlink = unsafe {
            let socket = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
            OwnedFd::from_raw_fd(checked(socket).unwrap())
        };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut message = Vec::new();
        message.extend(32u32.to_ne_bytes());
        message.extend(libc::RTM_DELLINK.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 12]);
        message.extend(self.index.to_ne_bytes());
        message.extend([0; 8]);
        rustix::io::write(&netlink, &message).unwrap();
        let mut answer = [0; 64];
        rustix::io::read(&netlink, &mut answer[..]).unwrap();
        assert_eq!(answer[16..20], [0; 4], "the tap is not deleted");
    }
}
