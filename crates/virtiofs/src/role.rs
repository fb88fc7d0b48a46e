// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file server as a process of its own: what its `main` calls, from inherited descriptors to the end.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::daemon::{self, DaemonConfig, DaemonError};
use crate::passthrough::{FsConfig, PassthroughFs};
use crate::sandbox::{self, SandboxError};
use crate::server::{Server, ServerConfig};

/// The descriptor under which the process inherits its listening socket.
pub const LISTENER_FD: RawFd = 3;
/// The descriptor under which the process inherits the shared directory, unless it gets a path.
pub const DIRECTORY_FD: RawFd = 4;
/// The descriptor under which the process inherits a network namespace, if [`RoleConfig::network`] says so.
pub const NETWORK_FD: RawFd = 5;

/// Descriptors for whatever is neither an inode nor a file of the guest: the connection, events, memory.
const RESERVED_DESCRIPTORS: u64 = 1024;

/// How a directory is served.
#[derive(Clone, Debug, Default)]
pub struct RoleConfig {
    /// How it is shared. The bounds on inodes and handles are lowered to what the system allows.
    pub fs: FsConfig,
    /// What is offered to the guest's kernel.
    pub server: ServerConfig,
    /// How the queues are served.
    pub daemon: DaemonConfig,
    /// Whether the process enters the empty network namespace inherited as [`NETWORK_FD`], instead of making one. To
    /// enter one is quicker, and the processes of a machine may share it: none of them can bind a socket.
    pub network: bool,
}

/// Why the file server could not serve, or not to the end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RoleError {
    /// A descriptor is missing that the process should have inherited, or is used already.
    #[error("descriptor {fd} was not handed to the file server")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// Why it cannot be used.
        source: io::Error,
    },
    /// Descriptors that the process inherited besides those cannot be closed.
    #[error("cannot close what the file server has inherited from descriptor {first} on")]
    Close {
        /// Number of the first.
        first: RawFd,
        /// Why.
        source: io::Error,
    },
    /// The shared directory cannot be opened.
    #[error("cannot open {} to share it", .path.display())]
    Directory {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process cannot shut itself in.
    #[error("the file server cannot enter its sandbox")]
    Sandbox(#[from] SandboxError),
    /// The directory cannot be shared.
    #[error("the directory cannot be shared")]
    Share(#[source] io::Error),
    /// Serving failed.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
}

/// Serves the directory at `path`, or the one inherited as [`DIRECTORY_FD`], to the virtual machine that
/// connects to the socket inherited as [`LISTENER_FD`]. Ends when that hangs up.
///
/// To be called before the process opens anything: whatever else it has inherited, but for its standard streams, is
/// closed, since it would lead out of the sandbox.
///
/// # Errors
/// [`RoleError`].
pub fn main(path: Option<&Path>, config: RoleConfig) -> Result<(), RoleError> {
    if path.is_some() {
        close(DIRECTORY_FD, DIRECTORY_FD)?;
    }
    if !config.network {
        close(NETWORK_FD, NETWORK_FD)?;
    }
    close(NETWORK_FD + 1, RawFd::MAX)?;
    let listener = UnixListener::from(inherited::<LISTENER_FD>()?);
    let directory = match path {
        Some(path) => open_directory(path).map_err(|source| RoleError::Directory {
            path: path.to_owned(),
            source,
        })?,
        None => inherited::<DIRECTORY_FD>()?,
    };
    let network = match config.network {
        true => Some(inherited::<NETWORK_FD>()?),
        false => None,
    };
    run(listener, directory, network, config)
}

/// Shuts the process in around `directory`, and `network` if there is one, and serves it to the virtual machine that connects to `listener`.
/// To be called while the process has one thread. The process is not good for anything else afterwards, and keeps
/// every descriptor that it has: [`main`] closes them.
///
/// # Errors
/// [`RoleError`].
pub fn run(
    listener: UnixListener,
    directory: OwnedFd,
    network: Option<OwnedFd>,
    config: RoleConfig,
) -> Result<(), RoleError> {
    let RoleConfig {
        mut fs,
        server,
        daemon,
        network: _,
    } = config;
    let inside = sandbox::enter(directory, network)?;
    bound(&mut fs, inside.max_descriptors);
    let share = PassthroughFs::new(inside.root, inside.fds, fs).map_err(RoleError::Share)?;
    Ok(daemon::serve(
        listener,
        Server::new(share, server),
        &daemon,
    )?)
}

/// Lowers the bounds so that the guest runs into them before the process runs out of descriptors.
fn bound(fs: &mut FsConfig, max_descriptors: u64) {
    let available = max_descriptors.saturating_sub(RESERVED_DESCRIPTORS);
    let available = usize::try_from(available).unwrap_or(usize::MAX);
    fs.max_handles = fs.max_handles.min(available / 8);
    fs.max_inodes = fs.max_inodes.min(available - fs.max_handles);
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Closes all descriptors from `first` to `last`.
fn close(first: RawFd, last: RawFd) -> Result<(), RoleError> {
    // SAFETY: takes and changes no memory. That the descriptors belong to nobody, [`main`] asks of its caller.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(RoleError::Close {
            first,
            source: io::Error::last_os_error(),
        })
    }
}

/// Takes a descriptor that the process was started with.
fn inherited<const FD: RawFd>() -> Result<OwnedFd, RoleError> {
    static TAKEN: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];
    let number = const {
        assert!(LISTENER_FD <= FD && FD <= NETWORK_FD);
        (FD - LISTENER_FD) as usize
    };
    let failed = |source| RoleError::Inherited { fd: FD, source };

    if TAKEN[number].swap(true, Ordering::AcqRel) {
        return Err(failed(io::ErrorKind::ResourceBusy.into()));
    }
    // SAFETY: F_SETFD takes and changes no memory.
    if unsafe { libc::fcntl(FD, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open, as the call has shown. It was so from the start of the process, as its
    // caller knows who reserves these numbers, and nobody else has taken it.
    let owned = unsafe { File::from_raw_fd(FD) };
    Ok(owned.into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plenty(1 << 20)]
    #[case::few(4096)]
    #[case::hardly_any(1024)]
    #[case::less_than_the_server_itself_needs(256)]
    fn the_guest_is_stopped_before_descriptors_run_out(#[case] max_descriptors: u64) {
        let mut fs = FsConfig::default();

        bound(&mut fs, max_descriptors);

        let used = fs.max_handles + fs.max_inodes;
        assert!(used as u64 <= max_descriptors.saturating_sub(RESERVED_DESCRIPTORS));
    }
}
