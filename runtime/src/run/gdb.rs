// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket at which a debugger finds the machine. Whoever may connect rules the guest: that is its owner alone, and
//! the file goes with the run.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::listeners::through_descriptor;

/// Debuggers that may wait to be served: there is one at a time.
const WAITING: i32 = 1;

/// A socket that listens. Dropping it removes its file.
pub struct Socket {
    listener: OwnedFd,
    path: PathBuf,
    /// The file's device and inode: another at its place is not ours.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Self> {
        let what = || format!("cannot listen for gdb at {}", path.display());
        // By the time it is removed, this process may be in another directory.
        let path = std::path::absolute(path).with_context(what)?;
        let flags = SocketFlags::CLOEXEC;
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).with_context(what)?;
        let make = || {
            through_descriptor(&path, |path| {
                Ok(bind(&listener, &SocketAddrUnix::new(path)?)?)
            })
        };
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(&path) => {
                fs::remove_file(&path).and_then(|()| make())
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(io::Error::other(match is_socket(&path) {
                    true => "somebody listens there",
                    false => "there is a file, and it is no socket",
                }))
            }
            made => made,
        }
        .with_context(what)?;
        let found = fs::symlink_metadata(&path).with_context(what)?;
        let socket = Self {
            listener,
            path,
            identity: (found.dev(), found.ino()),
        };
        // Before anybody can connect.
        fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o600)).with_context(what)?;
        listen(&socket.listener, WAITING).with_context(what)?;
        Ok(socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            // Where it cannot be removed, the next run replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a socket is there that nobody has open. It is not connected to, which would stop another machine's guest: a
/// socket of another kind is told that there is one of this, or none.
fn is_dead(path: &Path) -> bool {
    let refused = |path: PathBuf| {
        let kind = SocketType::DGRAM;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let connected = connect(&socket, &SocketAddrUnix::new(path)?);
        Ok(connected == Err(Errno::CONNREFUSED))
    };
    is_socket(path) && through_descriptor(path, refused).unwrap_or(false)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn socket_of_a_dead_debugger_is_replaced_and_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, file) = (directory.path().join("gdb"), directory.path().join("file"));
        drop(UnixListener::bind(&socket).unwrap());
        fs::write(&file, "precious").unwrap();

        let alive = Socket::bind(&socket).unwrap();

        UnixStream::connect(&socket).unwrap();
        let refused = |path| format!("{:#}", Socket::bind(path).err().unwrap());
        assert!(refused(&socket).ends_with("gdb: somebody listens there"));
        assert!(refused(&file).ends_with("file: there is a file, and it is no socket"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        drop(alive);
    }

    #[test]
    fn socket_that_is_alive_is_not_visited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let alive = UnixListener::bind(&path).unwrap();
        alive.set_nonblocking(true).unwrap();

        let refused = Socket::bind(&path);

        assert!(refused.is_err());
        let visit = alive.accept().unwrap_err();
        assert_eq!(visit.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn file_goes_with_the_socket_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let socket = Socket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();

        drop(socket);

        assert_eq!(mode & 0o777, 0o600);
        assert!(!path.exists());
    }

    #[test]
    fn anothers_file_at_its_place_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let socket = Socket::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("aside")).unwrap();
        fs::write(&path, "precious").unwrap();

        drop(socket);

        assert!(path.exists());
    }
}
