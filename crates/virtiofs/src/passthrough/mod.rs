// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A directory of the host as a [`FileSystem`](crate::filesystem::FileSystem).
//!
//! What keeps the guest inside:
//! - an inode is an `O_PATH` descriptor, found by one checked name below another such descriptor, without
//!   following symbolic links; `..` never reaches the host;
//! - only regular files and directories are ever opened, through the descriptor that was checked;
//! - what the guest can make the server hold (inodes, open files) is bounded, and the numbers by which it
//!   names them are never used twice.

mod attr;
mod config;
mod credentials;
mod data;
mod directory;
mod handle;
mod inode;
mod names;
mod open;
mod operations;
mod self_fds;
mod xattr;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

pub use config::{CachePolicy, FsConfig};
pub use self_fds::SelfFds;

use attr::Status;
use handle::Handles;
use inode::Inodes;

use crate::filesystem::Result;

/// A directory of the host, shared with a guest.
///
/// To make files in the name of the guest's users, threads that serve requests act as those users for single
/// system calls. That takes the capabilities of a file server (see [`sandbox`](crate::sandbox)); without them
/// only the server's own user can make anything. The process's umask should be 0: the guest's kernel has
/// applied the umask of its own process already.
#[derive(Debug)]
pub struct PassthroughFs {
    config: FsConfig,
    fds: SelfFds,
    inodes: Inodes,
    handles: Handles,
    submounts: AtomicBool,
    writeback: AtomicBool,
}

impl PassthroughFs {
    /// Shares the directory behind `root`, which may be an `O_PATH` descriptor.
    ///
    /// # Errors
    /// Where `root` is no directory, or its attributes cannot be read.
    pub fn new(root: OwnedFd, fds: SelfFds, config: FsConfig) -> std::io::Result<Self> {
        let status = Status::of(&root)?;
        let inodes = Inodes::new(root, &status, config.max_inodes);
        inodes
            .get(crate::filesystem::NodeId(crate::fuse::abi::ROOT_ID))?
            .require_directory()?;
        Ok(Self {
            inodes,
            handles: Handles::new(config.max_handles),
            config,
            fds,
            submounts: AtomicBool::new(false),
            writeback: AtomicBool::new(false),
        })
    }

    fn require_writable(&self) -> Result<()> {
        if self.config.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    fn marks_mounts(&self) -> bool {
        self.submounts.load(Ordering::Relaxed)
    }

    fn writes_back(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }
}
