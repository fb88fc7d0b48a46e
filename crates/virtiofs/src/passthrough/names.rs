// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names: finding, making and removing what a directory lists.
//!
//! A directory is always a descriptor and a name always one component, so what the guest renames
//! meanwhile changes at most what is found, never where.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, makedev};
use rustix::io::Errno;

use super::PassthroughFs;
use super::attr::{Status, decode_device};
use super::credentials::ActingAs;
use super::inode::Inode;
use crate::filesystem::{Caller, Entry, NodeId, Result};
use crate::fuse::Name;

impl PassthroughFs {
    pub(super) fn find(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.find_in(&*self.inodes.get(parent)?, name)
    }

    /// Without following a symbolic link: what a link means is for the guest to say.
    pub(super) fn find_in(&self, parent: &Inode, name: Name<'_>) -> Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name.as_c_str(), flags, Mode::empty())?;
        self.enter(parent, fd)
    }

    /// Gives the guest a reference to the inode behind an `O_PATH` descriptor, found in `parent`.
    pub(super) fn enter(&self, parent: &Inode, fd: OwnedFd) -> Result<Entry> {
        let status = Status::of(&fd)?;
        let below = self.marks_mounts().then_some(parent);
        Ok(Entry {
            node: self.inodes.insert(fd, &status)?,
            attributes: status.attributes(below),
            entry_timeout: self.config.lifetime(),
            attribute_timeout: self.config.lifetime(),
        })
    }

    pub(super) fn make_directory(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> Result<Entry> {
        self.make(caller, parent, name, |parent, name| {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode & 0o7777))
        })
    }

    pub(super) fn make_node(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        device: u32,
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        let device = match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => 0,
            // The whiteout of an overlay is a device node that opens nothing.
            FileType::CharacterDevice if device == 0 => 0,
            FileType::CharacterDevice | FileType::BlockDevice if self.config.device_nodes => {
                let (major, minor) = decode_device(device);
                makedev(major, minor)
            }
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        };
        self.make(caller, parent, name, |parent, name| {
            rustix::fs::mknodat(
                parent,
                name,
                kind,
                Mode::from_raw_mode(mode & 0o7777),
                device,
            )
        })
    }

    pub(super) fn make_symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry> {
        self.make(caller, parent, name, |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })
    }

    fn make(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        make: impl FnOnce(&Inode, &CStr) -> Result<()>,
    ) -> Result<Entry> {
        let parent = self.inodes.get(parent)?;
        // Before, so that nothing is left behind that the guest was told could not be made.
        self.inodes.require_room()?;
        let acting = ActingAs::new(caller)?;
        make(&parent, name.as_c_str())?;
        drop(acting);
        self.find_in(&parent, name)
    }

    pub(super) fn make_link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let (inode, parent) = (self.inodes.get(node)?, self.inodes.get(parent)?);
        self.fds.link(&inode, &parent, name.as_c_str())?;
        // The guest holds the inode, so that this only counts one more reference.
        let fd = self.fds.reopen(&*inode, OFlags::PATH)?;
        self.enter(&parent, fd)
    }

    pub(super) fn remove(&self, parent: NodeId, name: Name<'_>, flags: AtFlags) -> Result<()> {
        rustix::fs::unlinkat(&*self.inodes.get(parent)?, name.as_c_str(), flags)
    }

    pub(super) fn move_name(
        &self,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits(flags)
            .filter(|flags| {
                (RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT)
                    .contains(*flags)
            })
            .ok_or(Errno::INVAL)?;
        let (from_directory, to_directory) = (self.inodes.get(from.0)?, self.inodes.get(to.0)?);
        rustix::fs::renameat_with(
            &*from_directory,
            from.1.as_c_str(),
            &*to_directory,
            to.1.as_c_str(),
            flags,
        )
    }

    pub(super) fn target(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()> {
        let inode = self.inodes.get(node)?;
        if !inode.is_symlink() {
            return Err(Errno::INVAL);
        }
        let text = rustix::fs::readlinkat(&*inode, c"", Vec::new())?;
        target.extend_from_slice(text.to_bytes());
        Ok(())
    }
}
