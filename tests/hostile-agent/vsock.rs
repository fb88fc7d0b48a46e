// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections between the guest and its host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coracle_agent_api::{AGENT_PORT, HOST_CID, READY_PORT};

/// The address of every guest.
const GUEST_CID: u32 = 3;

/// Connects to a port of the host.
pub fn connect(port: u32) -> io::Result<File> {
    connect_to(HOST_CID, port)
}

/// Begins to connect to a port of the host.
pub fn begin_to_connect(port: u32) -> io::Result<File> {
    let socket = socket()?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    let address = address(HOST_CID, port);
    // SAFETY: the address outlives the call and is as long as is said.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Calls the host, the guest and itself at each port that means something, and says which of them takes the call.
pub fn call_all() -> io::Result<()> {
    for cid in [HOST_CID, GUEST_CID, libc::VMADDR_CID_LOCAL] {
        for port in [AGENT_PORT, READY_PORT, 2000, 2001, 2002] {
            let taken = connect_to(cid, port).and_then(|mut stream| {
                time_out(&stream)?;
                stream.write_all(b"{}\n")?;
                stream.read(&mut [0])
            });
            match taken {
                Ok(0) => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
                Ok(_) => println!("{cid}:{port} answers"),
                Err(_) => println!("{cid}:{port} listens"),
            }
        }
    }
    println!("called");
    Ok(())
}

/// Calls the host's ports beside those of the container's own streams, for ever, and has something to say to whoever
/// takes the call.
pub fn take_streams() -> io::Result<()> {
    println!("calling");
    loop {
        for port in 2000..2100 {
            if let Ok(mut stream) = connect(port) {
                stream.write_all(b"taken\n")?;
            }
        }
    }
}

/// Lets reads of `stream` fail after a second.
fn time_out(stream: &File) -> io::Result<()> {
    let second = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    // SAFETY: the option's value outlives the call and is as long as is said.
    check(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const second).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })
    .map(drop)
}

fn connect_to(cid: u32, port: u32) -> io::Result<File> {
    let socket = socket()?;
    let address = address(cid, port);
    // SAFETY: the address outlives the call and is as long as is said.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    Ok(socket.into())
}

/// Listens to a port.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address outlives the call and is as long as is said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) })?;
    Ok(socket)
}

/// Takes the next connection.
pub fn accept(listener: &OwnedFd) -> io::Result<File> {
    // SAFETY: nobody asks for the address.
    let socket = check(unsafe {
        libc::accept(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { File::from_raw_fd(socket) })
}

/// Ends a direction of a connection, or both.
pub fn shut(stream: &File, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no memory is involved.
    check(unsafe { libc::shutdown(stream.as_raw_fd(), how) }).map(drop)
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: an address of zeroes is a valid one.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let socket = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
