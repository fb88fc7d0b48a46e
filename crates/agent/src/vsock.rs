// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams to and from the host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use coracle_agent_api::HOST_CID;
use ttrpc::security_extension::{AcceptHook, ConnectionData, HookError, HookOutput};

/// How many connections may wait to be taken.
const BACKLOG: libc::c_int = 16;

/// Listens on `port` for whoever can reach this guest.
///
/// # Errors
///
/// The kernel has no vsock, or the port is taken.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is one of its family, of the length given, and outlives the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_LENGTH,
        )
    })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Connects to `port` of the host.
///
/// # Errors
///
/// The host does not listen there, or there is no way to the host.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(HOST_CID, port);
    loop {
        // SAFETY: as for `bind` above.
        let connected = check(unsafe {
            libc::connect(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                ADDRESS_LENGTH,
            )
        });
        match connected {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|()| socket),
        }
    }
}

/// Lets the server listen to the host alone. A container that can open vsock sockets, and a kernel with a loopback
/// transport, would otherwise be enough to command the agent.
#[derive(Debug)]
pub struct HostOnly;

impl AcceptHook for HostOnly {
    fn on_accept(&self, fd: RawFd) -> Result<HookOutput, HookError> {
        match peer(fd) {
            Ok(HOST_CID) => Ok(HookOutput {
                data: ConnectionData::default(),
                payload_transform: None,
            }),
            Ok(cid) => Err(HookError::Rejected(format!(
                "context {cid} is not the host"
            ))),
            Err(error) => Err(HookError::Rejected(format!("unknown peer: {error}"))),
        }
    }
}

/// The context identifier of what `fd` is connected to.
fn peer(fd: RawFd) -> io::Result<u32> {
    let mut address = address(0, 0);
    let mut length = ADDRESS_LENGTH;
    // SAFETY: the kernel writes no more than `length` bytes of an address.
    check(unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut length) })?;
    if address.svm_family != FAMILY {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(address.svm_cid)
}

const FAMILY: libc::sa_family_t = libc::AF_VSOCK as libc::sa_family_t;
const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: an address of zeroes is a valid one.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = FAMILY;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn peer_that_is_not_the_host_is_refused() {
        let (stream, _peer) = UnixStream::pair().unwrap();

        assert!(HostOnly.on_accept(stream.as_raw_fd()).is_err());
    }
}
