// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the host's programs meet the guest: a socket that they connect to, and the names of those
//! that they listen on.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::stream::Stream;

/// Longest path of a Unix socket, in bytes (`sun_path` without its final zero).
const LONGEST_PATH: usize = 107;

/// What is added to the path for a port, at its longest.
const LONGEST_SUFFIX: usize = "_4294967295".len();

/// Why a device has no socket to listen on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The path, or that of some port below it, would not fit into a socket address.
    #[error(
        "socket path {path} has {len} bytes, and for the suffixes of ports only {max} are possible",
        path = path.display(),
        len = path.as_os_str().len(),
        max = LONGEST_PATH - LONGEST_SUFFIX
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made. What exists there already is never removed.
    #[error("cannot listen on socket {path}", path = path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// The socket; its name goes when it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's name, so as to remove no other.
    identity: (u64, u64),
}

impl Endpoint {
    /// Listens on `path`.
    pub fn bind(path: PathBuf) -> Result<Self, EndpointError> {
        if path.as_os_str().len() > LONGEST_PATH - LONGEST_SUFFIX {
            return Err(EndpointError::PathTooLong { path });
        }
        match Self::listen(&path) {
            Ok((listener, identity)) => Ok(Self {
                listener,
                path,
                identity,
            }),
            Err(source) => Err(EndpointError::Listen { path, source }),
        }
    }

    fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok((listener, identity(path)?))
    }

    /// Takes a connection that a program of the host has made.
    pub fn accept(&self) -> Result<Stream, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::accept_with(&self.listener, flags).map(Stream::accepted)
    }

    /// Connects to the program of the host that listens for `port`.
    ///
    /// # Errors
    ///
    /// Those of [`Stream::connect`].
    pub fn dial(&self, port: u32) -> Result<Stream, Errno> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        Stream::connect(Path::new(&path))
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Nobody is left to hear of a failure.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn name_goes_with_the_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let endpoint = Endpoint::bind(path.clone()).unwrap();
        assert!(path.exists());

        drop(endpoint);

        assert!(!path.exists());
    }

    #[test]
    fn what_somebody_else_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let endpoint = Endpoint::bind(path.clone()).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();

        drop(endpoint);

        assert!(UnixStream::connect(&path).is_ok());
        drop(other);
    }

    #[test]
    fn existing_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        fs::write(&path, "precious").unwrap();

        let error = Endpoint::bind(path.clone()).unwrap_err();

        assert_eq!(
            error.to_string(),
            format!("cannot listen on socket {}", path.display())
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn path_without_room_for_a_port_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v".repeat(LONGEST_PATH));

        let error = Endpoint::bind(path).unwrap_err();

        assert!(matches!(error, EndpointError::PathTooLong { .. }));
        assert!(error.to_string().ends_with("only 96 are possible"));
    }

    #[test]
    fn longest_path_has_room_for_the_highest_port() {
        let dir = tempfile::tempdir().unwrap();
        let name = LONGEST_PATH - LONGEST_SUFFIX - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("v".repeat(name));
        let endpoint = Endpoint::bind(path.clone()).unwrap();
        let mut port = path.into_os_string();
        port.push("_4294967295");
        let listener = UnixListener::bind(port).unwrap();

        let stream = endpoint.dial(u32::MAX).unwrap();

        drop(stream);
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn port_that_nobody_listens_on_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::bind(dir.path().join("vsock")).unwrap();

        assert_eq!(endpoint.dial(1).unwrap_err(), Errno::NOENT);
    }
}
