// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening: regular files and directories, and nothing else.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::PassthroughFs;
use super::config::CachePolicy;
use super::credentials::{ActingAs, WithoutFsetid};
use super::inode::Inode;
use crate::filesystem::{Caller, Entry, NodeId, OpenMode, Opened, Result};
use crate::fuse::Name;
use crate::fuse::flags::open_out;

impl PassthroughFs {
    pub(super) fn open_file(&self, node: NodeId, mode: OpenMode) -> Result<Opened> {
        let inode = self.inodes.get(node)?;
        inode.require_file()?;
        self.handles.require_room()?;
        let flags = self.host_flags(mode.flags)?;
        let _killing = WithoutFsetid::new(mode.kill_suidgid && flags.contains(OFlags::TRUNC))?;
        self.opened(node, self.fds.reopen(&*inode, flags)?, flags)
    }

    pub(super) fn create_file(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Entry, Opened)> {
        self.handles.require_room()?;
        self.inodes.require_room()?;
        let directory = self.inodes.get(parent)?;
        let flags = self.host_flags(mode.flags)? - OFlags::TRUNC;
        let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let acting = ActingAs::new(caller)?;
        let made = rustix::fs::openat(
            &*directory,
            name.as_c_str(),
            flags | exclusive,
            permission_bits(permissions),
        );
        drop(acting);
        match made {
            Ok(fd) => self.enter_opened(&directory, fd, flags),
            Err(Errno::EXIST) if !OFlags::from_bits_retain(mode.flags).contains(OFlags::EXCL) => {
                let entry = self.find_in(&directory, name)?;
                let opened = self.open_file(entry.node, mode);
                opened
                    .map(|opened| (entry, opened))
                    .inspect_err(|_| self.inodes.forget(entry.node, 1))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn create_unnamed(
        &self,
        caller: Caller,
        parent: NodeId,
        permissions: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.handles.require_room()?;
        self.inodes.require_room()?;
        let directory = self.inodes.get(parent)?;
        let unlinkable = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let flags = self.host_flags(flags)? - OFlags::TRUNC;
        let acting = ActingAs::new(caller)?;
        let fd = rustix::fs::openat(
            &*directory,
            c".",
            flags | unlinkable | OFlags::TMPFILE | OFlags::CLOEXEC,
            permission_bits(permissions),
        )?;
        drop(acting);
        self.enter_opened(&directory, fd, flags)
    }

    pub(super) fn open_directory(&self, node: NodeId) -> Result<Opened> {
        let inode = self.inodes.get(node)?;
        inode.require_directory()?;
        self.handles.require_room()?;
        let fd = self
            .fds
            .reopen(&*inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let open_flags = match self.config.cache {
            CachePolicy::Never | CachePolicy::Auto => 0,
            CachePolicy::Always => open_out::KEEP_CACHE | open_out::CACHE_DIR,
        };
        Ok(Opened {
            handle: self.handles.insert_directory(node, fd)?,
            open_flags,
        })
    }

    /// The inode is found through the descriptor, not once more by name, under which something else may be
    /// found by now.
    fn enter_opened(
        &self,
        directory: &Inode,
        fd: OwnedFd,
        flags: OFlags,
    ) -> Result<(Entry, Opened)> {
        let entry = self.enter(directory, self.fds.reopen(&fd, OFlags::PATH)?)?;
        let opened = self
            .opened(entry.node, fd, flags)
            .inspect_err(|_| self.inodes.forget(entry.node, 1))?;
        Ok((entry, opened))
    }

    fn opened(&self, node: NodeId, fd: OwnedFd, flags: OFlags) -> Result<Opened> {
        let mut open_flags = match self.config.cache {
            CachePolicy::Never => open_out::DIRECT_IO,
            CachePolicy::Auto => 0,
            CachePolicy::Always => open_out::KEEP_CACHE,
        };
        if !writes(flags) {
            open_flags |= open_out::NOFLUSH;
        }
        Ok(Opened {
            handle: self.handles.insert_file(node, fd)?,
            open_flags,
        })
    }

    /// Of the guest's flags those that mean something to the host's descriptor.
    ///
    /// `O_APPEND` is not among them: each write says whether it appends, and one that the guest's page cache
    /// delayed must go where it says, whatever handle it comes with. Nor is `O_DIRECT`: it goes around the
    /// guest's cache, while the alignment that the host's file system wants is nothing the guest knows.
    fn host_flags(&self, flags: u32) -> Result<OFlags> {
        let kept = OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
        let flags = OFlags::from_bits_retain(flags) & kept;
        if flags.contains(OFlags::RWMODE) {
            return Err(Errno::INVAL);
        }
        if writes(flags) || flags.contains(OFlags::TRUNC) {
            self.require_writable()?;
        }
        // To fill up a page that is written in part, the guest's cache reads it first.
        if self.writes_back() && flags & OFlags::RWMODE == OFlags::WRONLY {
            return Ok((flags - OFlags::WRONLY) | OFlags::RDWR);
        }
        Ok(flags)
    }
}

fn writes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY
}

const fn permission_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
