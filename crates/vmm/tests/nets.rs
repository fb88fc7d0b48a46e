// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Network devices of a confined guest, over taps in a network namespace with nothing else.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use common::harness::{Needs, Tests};
use common::process::{DEADLINE, Vmm, error_message};
use common::{code, driver};
use coracle_vmm::role::Event;
use coracle_vmm::{Exit, Net};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

const GUEST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x17];
const HOST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// An Ethernet type for experiments.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Bytes of an Ethernet header, and of virtio's before it.
const ETHERNET: u32 = 14;
const HEADER: u32 = 12;

/// `_IOW('T', 202, int)`, and what it is asked for.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

fn main() {
    Tests::new()
        .tests(
            Needs::KvmRootAndTap,
            named![
                packets_of_a_confined_guest_go_both_ways,
                what_is_no_tap_is_told,
            ],
        )
        .run()
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Leaves the host's network for one with a tap: the tap, and a packet socket on it.
fn tap() -> io::Result<(OwnedFd, OwnedFd)> {
    // SAFETY: a new network namespace changes no descriptor or memory that other code relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    // Or the host's end would talk first. A kernel without IPv6 has no such file.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let protocol = 3u16.to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the kernel reads and writes the request and reads the address, for which all zeroes are values; the
    // socket is ours alone.
    let socket = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        checked(libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request))?;
        let socket = checked(libc::socket(libc::AF_PACKET, kind, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        checked(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw mut request,
        ))?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(request.ifr_name.as_ptr()).cast_signed();
        let len = size_of_val(&address) as libc::socklen_t;
        checked(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            len,
        ))?;
        socket
    };
    Ok((tap.into(), socket))
}

/// A frame with a word of text in it.
fn frame(from: [u8; 6], to: [u8; 6], text: &[u8; 4]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &EXPERIMENT, text].concat();
    frame.resize(60, 0);
    frame
}

/// Prints a word of the frame that it receives, then sends `frame`.
fn receive_then_send(frame: &[u8]) -> Vec<u8> {
    let words = frame.chunks(4).map(|word| {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        u32::from_le_bytes(bytes)
    });
    let len = HEADER + u32::try_from(frame.len()).unwrap();
    [
        driver::set_up(driver::WINDOW, 2),
        driver::publish(driver::WINDOW, 0, 1526, true),
        driver::wait_for_used(0),
        code::load(driver::buffer(0) + HEADER + ETHERNET),
        code::print_eax(),
        (0..)
            .zip(words)
            .flat_map(|(at, word)| code::store(driver::buffer(1) + HEADER + at * 4, word))
            .collect(),
        driver::publish(driver::WINDOW, 1, len, false),
        driver::wait_for_used(1),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat()
}

fn packets_of_a_confined_guest_go_both_ways() {
    // A thread of its own: namespaces belong to threads.
    let test = thread::spawn(|| {
        let (tap, host) = tap().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let sent = frame(GUEST, HOST, b"ship");
        let code = receive_then_send(&sent);
        let mut vmm = Vmm::with_guest(&code, vec![tap, writer.into()], |config| {
            config.nets.push(Net {
                tap: 5,
                mac: GUEST,
                mtu: Some(1500),
            });
            config.serial_log = Some(6);
        });
        assert_eq!(vmm.event(), Some(Event::Running));

        rustix::io::write(&host, &frame(HOST, GUEST, b"boat")).unwrap();

        let (events, _, stderr) = vmm.finish();
        let reason = Exit::Shutdown;
        assert_eq!(events, [Event::Exit { reason }], "{stderr}");
        let mut output = Vec::new();
        reader.read_to_end(&mut output).unwrap();
        assert_eq!(output, b"boat");
        assert_eq!(receive_from_guest(&host), sent);
    });
    test.join().unwrap();
}

/// The first frame of the guest's.
fn receive_from_guest(host: &OwnedFd) -> Vec<u8> {
    let since = Instant::now();
    loop {
        let mut frame = vec![0; 2000];
        match rustix::io::read(host, &mut frame[..]) {
            Ok(len) if frame[6..12] == GUEST => {
                frame.truncate(len);
                return frame;
            }
            Ok(_) => {}
            Err(Errno::AGAIN) => thread::sleep(Duration::from_millis(1)),
            // The tap went with the machine, which is told once, before what has arrived.
            Err(Errno::NETDOWN) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(since.elapsed() < DEADLINE, "nothing comes from the guest");
    }
}

fn what_is_no_tap_is_told() {
    let (reader, _writer) = io::pipe().unwrap();
    let vmm = Vmm::with_guest(&code::SPIN, vec![reader.into()], |config| {
        config.nets.push(Net {
            tap: 5,
            mac: GUEST,
            mtu: None,
        });
    });

    let (events, _, _) = vmm.finish();

    let message = error_message(&events);
    assert!(
        message.contains("network device 0 cannot be made"),
        "{message}"
    );
    assert!(message.contains("the tap refuses TUNGETIFF"), "{message}");
}
