// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in regular files: reading, writing, and everything else that takes a file's handle.

use std::os::fd::IntoRawFd;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::PassthroughFs;
use super::credentials::WithoutFsetid;
use crate::buffers::{Destination, Source};
use crate::filesystem::{CopyRange, HandleId, NodeId, Result, WriteMode};
use crate::fuse::abi::StatfsOut;

/// Most bytes that one COPY_FILE_RANGE copies, so that other requests get their turn. The guest goes on where
/// it stopped.
const MAX_COPY: u64 = 64 << 20;

impl PassthroughFs {
    pub(super) fn read_file(
        &self,
        node: NodeId,
        id: HandleId,
        offset: u64,
        into: &Destination<'_>,
    ) -> Result<usize> {
        into.read_from(&*self.handles.file(node, id)?, offset)
    }

    pub(super) fn write_file(
        &self,
        node: NodeId,
        id: HandleId,
        offset: u64,
        from: &Source<'_>,
        mode: WriteMode,
    ) -> Result<usize> {
        let handle = self.handles.file(node, id)?;
        // The host's kernel removes file capabilities at every write, and the two bits at those of
        // whoever lacks this capability.
        let _killing = WithoutFsetid::new(mode.kill_suidgid)?;
        from.write_to(&*handle, offset, mode.append)
    }

    /// Some file systems, NFS among them, report failed writes only when a descriptor is closed.
    pub(super) fn flush_file(&self, node: NodeId, id: HandleId) -> Result<()> {
        let copy = rustix::io::dup(&*self.handles.file(node, id)?)?;
        // SAFETY: the descriptor was owned by `copy`, which has just given it up; it is closed once.
        match unsafe { libc::close(copy.into_raw_fd()) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    pub(super) fn sync_file(&self, node: NodeId, id: HandleId, data_only: bool) -> Result<()> {
        let handle = self.handles.file(node, id)?;
        if data_only {
            rustix::fs::fdatasync(&*handle)
        } else {
            rustix::fs::fsync(&*handle)
        }
    }

    pub(super) fn allocate(
        &self,
        node: NodeId,
        id: HandleId,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits(mode)
            .filter(|mode| known.contains(*mode))
            .ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(&*self.handles.file(node, id)?, mode, offset, length)
    }

    /// The guest knows where its descriptors are; it asks the host only where data and holes begin.
    pub(super) fn seek_data(
        &self,
        node: NodeId,
        id: HandleId,
        offset: u64,
        whence: u32,
    ) -> Result<u64> {
        let position = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&*self.handles.file(node, id)?, position)
    }

    pub(super) fn copy_range(&self, range: &CopyRange) -> Result<usize> {
        let from = self.handles.file(range.from.0, range.from.1)?;
        let to = self.handles.file(range.to.0, range.to.1)?;
        let (mut from_offset, mut to_offset) = (range.from_offset, range.to_offset);
        let length = usize::try_from(range.length.min(MAX_COPY)).map_err(|_| Errno::INVAL)?;
        rustix::fs::copy_file_range(
            &*from,
            Some(&mut from_offset),
            &*to,
            Some(&mut to_offset),
            length,
        )
    }

    pub(super) fn sync_file_system(&self, node: NodeId) -> Result<()> {
        let inode = self.inodes.get(node)?;
        // Through an `O_PATH` descriptor the kernel does not sync. Linux asks for the root of a mount.
        inode.require_directory()?;
        rustix::fs::syncfs(
            self.fds
                .reopen(&*inode, OFlags::RDONLY | OFlags::DIRECTORY)?,
        )
    }

    pub(super) fn space(&self, node: NodeId) -> Result<StatfsOut> {
        let stat = rustix::fs::fstatfs(&*self.inodes.get(node)?)?;
        let small = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: small(stat.f_bsize),
            namelen: small(stat.f_namelen),
            frsize: small(stat.f_frsize),
            ..StatfsOut::default()
        })
    }
}
