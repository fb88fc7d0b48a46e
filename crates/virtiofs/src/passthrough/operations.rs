// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The operations of the file system as a list, which also shows which of them a read-only share refuses.
//! Opening for writing is refused where the flags are read.

use std::ffi::CStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::AtFlags;

use super::PassthroughFs;
use crate::buffers::{Destination, Source};
use crate::filesystem::{
    Caller, CopyRange, Entry, EntrySink, FileSystem, HandleId, Negotiated, NodeId, OpenMode,
    Opened, Result, WriteMode,
};
use crate::fuse::abi::{Attr, StatfsOut};
use crate::fuse::{Name, SetAttr};

impl FileSystem for PassthroughFs {
    fn init(&self, negotiated: Negotiated) {
        self.destroy();
        self.submounts
            .store(negotiated.submounts, Ordering::Relaxed);
        self.writeback
            .store(negotiated.writeback_cache, Ordering::Relaxed);
    }

    fn destroy(&self) {
        self.handles.clear();
        self.inodes.clear();
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.find(parent, name)
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.inodes.forget(node, count);
    }

    fn getattr(&self, node: NodeId, _handle: Option<HandleId>) -> Result<(Attr, Duration)> {
        Ok((self.attributes(node)?, self.config.lifetime()))
    }

    fn setattr(&self, node: NodeId, change: &SetAttr) -> Result<(Attr, Duration)> {
        self.require_writable()?;
        Ok((
            self.change_attributes(node, change)?,
            self.config.lifetime(),
        ))
    }

    fn readlink(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()> {
        self.target(node, target)
    }

    fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry> {
        self.require_writable()?;
        self.make_symlink(caller, parent, name, target)
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        self.require_writable()?;
        self.make_node(caller, parent, name, mode, rdev)
    }

    fn mkdir(&self, caller: Caller, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        self.require_writable()?;
        self.make_directory(caller, parent, name, mode)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.require_writable()?;
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.require_writable()?;
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(&self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()> {
        self.require_writable()?;
        self.move_name(from, to, flags)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.require_writable()?;
        self.make_link(node, parent, name)
    }

    fn open(&self, node: NodeId, mode: OpenMode) -> Result<Opened> {
        self.open_file(node, mode)
    }

    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Entry, Opened)> {
        self.require_writable()?;
        self.create_file(caller, parent, name, permissions, mode)
    }

    fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        permissions: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.require_writable()?;
        self.create_unnamed(caller, parent, permissions, flags)
    }

    fn read(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        into: &Destination<'_>,
    ) -> Result<usize> {
        self.read_file(node, handle, offset, into)
    }

    fn write(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        from: &Source<'_>,
        mode: WriteMode,
    ) -> Result<usize> {
        self.require_writable()?;
        self.write_file(node, handle, offset, from, mode)
    }

    fn flush(&self, node: NodeId, handle: HandleId) -> Result<()> {
        self.flush_file(node, handle)
    }

    fn release(&self, node: NodeId, handle: HandleId) -> Result<()> {
        self.handles.remove(node, handle)
    }

    fn fsync(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.sync_file(node, handle, data_only)
    }

    fn opendir(&self, node: NodeId) -> Result<Opened> {
        self.open_directory(node)
    }

    fn readdir(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        plus: bool,
        sink: &mut dyn EntrySink,
    ) -> Result<()> {
        self.read_directory(node, handle, offset, plus, sink)
    }

    fn releasedir(&self, node: NodeId, handle: HandleId) -> Result<()> {
        self.handles.remove(node, handle)
    }

    fn fsyncdir(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.sync_directory(node, handle, data_only)
    }

    fn statfs(&self, node: NodeId) -> Result<StatfsOut> {
        self.space(node)
    }

    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        self.require_writable()?;
        self.set_attribute(node, name, value, flags)
    }

    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize> {
        self.attribute(node, name, value)
    }

    fn listxattr(&self, node: NodeId, names: &mut Vec<u8>) -> Result<()> {
        self.attribute_names(node, names)
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.require_writable()?;
        self.remove_attribute(node, name)
    }

    fn fallocate(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        self.require_writable()?;
        self.allocate(node, handle, offset, length, mode)
    }

    fn lseek(&self, node: NodeId, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        self.seek_data(node, handle, offset, whence)
    }

    fn copy_file_range(&self, range: &CopyRange) -> Result<usize> {
        self.require_writable()?;
        self.copy_range(range)
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        self.sync_file_system(node)
    }
}
