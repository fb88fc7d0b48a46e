// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/proc/self/fd`: the one way from a descriptor that pins an inode to one that can read and write it,
//! which involves no name that somebody could exchange.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::path::DecInt;

use super::inode::Inode;
use crate::filesystem::Result;

/// The directory `/proc/self/fd` of this process.
///
/// Its entries are no common symbolic links: to follow one leads to the very inode that is open under
/// that number, and if that inode is itself a symbolic link, it is not followed further.
#[derive(Debug)]
pub struct SelfFds(OwnedFd);

impl SelfFds {
    /// Opens the directory. Whoever holds it can climb to the rest of the mount namespace it was found in;
    /// a process that is about to leave that namespace wants [`detached`](Self::detached).
    ///
    /// # Errors
    /// Where there is no procfs at `/proc`.
    pub fn open() -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(
            c"/proc/self/fd",
            flags,
            Mode::empty(),
        )?))
    }

    /// Opens the directory as a mount of its own that is attached nowhere: above it there is nothing.
    /// Takes `CAP_SYS_ADMIN` and Linux 5.2.
    ///
    /// # Errors
    /// Where there is no procfs at `/proc`, or the capability or the system call is missing.
    pub fn detached() -> std::io::Result<Self> {
        use rustix::mount::{OpenTreeFlags, open_tree};
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Self(open_tree(rustix::fs::CWD, c"/proc/self/fd", flags)?))
    }

    /// Opens what is behind `fd` again. For an inode that the guest named, its type is to be checked first.
    pub(super) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let name = DecInt::from_fd(fd);
        rustix::fs::openat(
            &self.0,
            name.as_c_str(),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// Changes the mode of what is behind `fd`.
    pub(super) fn change_mode(&self, fd: impl AsFd, mode: Mode) -> Result<()> {
        rustix::fs::chmodat(
            &self.0,
            DecInt::from_fd(fd).as_c_str(),
            mode,
            AtFlags::empty(),
        )
    }

    /// Gives an inode another name. By descriptor alone that takes `CAP_DAC_READ_SEARCH`, which would open
    /// every file of the host's file system by handle.
    pub(super) fn link(
        &self,
        inode: &Inode,
        directory: &Inode,
        name: &std::ffi::CStr,
    ) -> Result<()> {
        let number = DecInt::from_fd(inode);
        rustix::fs::linkat(
            &self.0,
            number.as_c_str(),
            directory,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}
