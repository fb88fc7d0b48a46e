// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an operation to the call that carries it out, and from what that gives to the body of a reply.

use std::sync::atomic::Ordering;

use coracle_virtio::Reader;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::encode::{attr_out, entry_out, open_out};
use super::entries::Entries;
use super::negotiation::{MAX_DATA, negotiate};
use super::{Reply, Server};
use crate::buffers::{Destination, Source};
use crate::filesystem::{
    Caller, CopyRange, Entry, FileSystem, HandleId, NodeId, OpenMode, Opened, WriteMode,
};
use crate::fuse::abi::{GetXattrOut, InHeader, InitIn, LseekOut, OutHeader, WriteOut};
use crate::fuse::{Operation, flags};

/// The longest value of an extended attribute and the longest list of their names, in bytes.
const MAX_XATTR: usize = 64 * 1024;

/// Where the body of a reply is.
pub(super) enum Payload {
    /// In the scratch buffer, to be copied behind the header.
    InScratch,
    /// Behind the header already, so many bytes.
    InPlace(usize),
}

impl<F: FileSystem> Server<F> {
    pub(super) fn dispatch(
        &self,
        header: &InHeader,
        operation: Operation<'_>,
        (data, data_length): (Reader<'_>, usize),
        reply: &Reply<'_>,
        body: &mut Vec<u8>,
    ) -> Result<Payload, Errno> {
        let fs = &self.file_system;
        let node = NodeId(header.nodeid);
        let caller = Caller {
            uid: header.uid,
            gid: header.gid,
        };
        let is_init = matches!(operation, Operation::Init(_));
        if !is_init && !self.initialized.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        match operation {
            Operation::Init(offer) => self.init(&offer, body)?,
            Operation::Destroy => self.reset(),
            Operation::Lookup { name } => put_entry(body, &fs.lookup(node, name)?),
            Operation::Forget { count } => fs.forget(node, count),
            Operation::BatchForget(list) => {
                list.iter().for_each(|(node, count)| fs.forget(node, count))
            }
            Operation::GetAttr { handle } => put(body, &attr_out(fs.getattr(node, handle)?)),
            Operation::SetAttr(change) => put(body, &attr_out(fs.setattr(node, &change)?)),
            Operation::ReadLink => fs.readlink(node, body)?,
            Operation::Symlink { name, target } => {
                put_entry(body, &fs.symlink(caller, node, name, target)?)
            }
            Operation::Mknod { name, mode, rdev } => {
                put_entry(body, &fs.mknod(caller, node, name, mode, rdev)?);
            }
            Operation::Mkdir { name, mode } => {
                put_entry(body, &fs.mkdir(caller, node, name, mode)?)
            }
            Operation::Unlink { name } => fs.unlink(node, name)?,
            Operation::Rmdir { name } => fs.rmdir(node, name)?,
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => {
                fs.rename((node, name), (new_parent, new_name), flags)?;
            }
            Operation::Link { source, new_name } => {
                put_entry(body, &fs.link(source, node, new_name)?)
            }
            Operation::Open { flags, open_flags } => {
                put(
                    body,
                    &open_out(fs.open(node, open_mode(flags, open_flags))?),
                );
            }
            Operation::Create {
                name,
                flags,
                mode,
                open_flags,
            } => {
                put_opened(
                    body,
                    fs.create(caller, node, name, mode, open_mode(flags, open_flags))?,
                );
            }
            Operation::TmpFile { flags, mode } => {
                put_opened(body, fs.tmpfile(caller, node, mode, flags)?)
            }
            Operation::Read {
                handle,
                offset,
                size,
            } => {
                return self.read(node, handle, offset, size, reply);
            }
            Operation::Write {
                handle,
                offset,
                size,
                write_flags,
                flags,
            } => {
                let mode = write_mode(write_flags, flags);
                let size = write_size(size, data_length)?;
                put(body, &self.write(node, handle, offset, (data, size), mode)?);
            }
            Operation::StatFs => put(body, &fs.statfs(node)?),
            Operation::Flush { handle } => fs.flush(node, handle)?,
            Operation::Release { handle } => fs.release(node, handle)?,
            Operation::Fsync { handle, data_only } => fs.fsync(node, handle, data_only)?,
            Operation::SetXattr { name, value, flags } => fs.setxattr(node, name, value, flags)?,
            Operation::GetXattr { name, size: 0 } => {
                put_size(body, fs.getxattr(node, name, &mut [])?)?
            }
            Operation::GetXattr { name, size } => {
                body.resize(to_usize(size)?.min(MAX_XATTR), 0);
                let length = fs.getxattr(node, name, body)?;
                body.truncate(length);
            }
            Operation::ListXattr { size } => {
                fs.listxattr(node, body)?;
                match (to_usize(size)?, body.len()) {
                    (0, length) => {
                        body.clear();
                        put_size(body, length)?;
                    }
                    (size, length) if length > size => return Err(Errno::RANGE),
                    _ => {}
                }
            }
            Operation::RemoveXattr { name } => fs.removexattr(node, name)?,
            // Its flags say nothing that opening a directory could heed.
            Operation::OpenDir { flags: _ } => put(body, &open_out(fs.opendir(node)?)),
            Operation::ReadDir {
                handle,
                offset,
                size,
                plus,
            } => {
                let limit = reply.room().unwrap_or(0).min(to_usize(size.min(MAX_DATA))?);
                fs.readdir(
                    node,
                    handle,
                    offset,
                    plus,
                    &mut Entries::new(body, limit, plus),
                )?;
            }
            Operation::ReleaseDir { handle } => fs.releasedir(node, handle)?,
            Operation::FsyncDir { handle, data_only } => fs.fsyncdir(node, handle, data_only)?,
            Operation::Fallocate {
                handle,
                offset,
                length,
                mode,
            } => {
                fs.fallocate(node, handle, offset, length, mode)?;
            }
            Operation::Lseek {
                handle,
                offset,
                whence,
            } => {
                put(
                    body,
                    &LseekOut {
                        offset: fs.lseek(node, handle, offset, whence)?,
                    },
                );
            }
            Operation::CopyFileRange {
                from,
                from_offset,
                to_node,
                to,
                to_offset,
                length,
            } => {
                let range = CopyRange {
                    from: (node, from),
                    from_offset,
                    to: (to_node, to),
                    to_offset,
                    length,
                };
                put(body, &write_out(fs.copy_file_range(&range)?)?);
            }
            Operation::SyncFs => fs.syncfs(node)?,
            Operation::Ignored => {}
            Operation::Unsupported => return Err(Errno::NOSYS),
        }
        Ok(Payload::InScratch)
    }

    fn init(&self, offer: &InitIn, body: &mut Vec<u8>) -> Result<(), Errno> {
        let (answer, negotiated) = negotiate(offer, &self.config)?;
        if let Some(negotiated) = negotiated {
            self.file_system.init(negotiated);
            self.initialized.store(true, Ordering::Release);
        }
        put(body, &answer);
        Ok(())
    }

    fn read(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        size: u32,
        reply: &Reply<'_>,
    ) -> Result<Payload, Errno> {
        if size > MAX_DATA {
            return Err(Errno::INVAL);
        }
        let mut room = reply.chain.writable();
        room.skip(size_of::<OutHeader>()).map_err(|_| Errno::IO)?;
        let iovecs = room.iovecs(to_usize(size)?);
        // SAFETY: the chain keeps these ranges mapped for as long as it is borrowed, and guest memory is never
        // referred to by a Rust reference.
        let destination = unsafe { Destination::new(iovecs) };
        self.file_system
            .read(node, handle, offset, &destination)
            .map(Payload::InPlace)
    }

    fn write(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        (mut data, size): (Reader<'_>, usize),
        mode: WriteMode,
    ) -> Result<WriteOut, Errno> {
        // SAFETY: as for the destination of a read.
        let source = unsafe { Source::new(data.iovecs(size)) };
        write_out(
            self.file_system
                .write(node, handle, offset, &source, mode)?,
        )
    }
}

const fn open_mode(flags: u32, open_flags: u32) -> OpenMode {
    OpenMode {
        flags,
        kill_suidgid: open_flags & flags::open_in::KILL_SUIDGID != 0,
    }
}

const fn write_mode(write_flags: u32, flags: u32) -> WriteMode {
    let delayed = write_flags & flags::write::CACHE != 0;
    WriteMode {
        append: flags & libc::O_APPEND.cast_unsigned() != 0 && !delayed,
        kill_suidgid: write_flags & flags::write::KILL_SUIDGID != 0,
    }
}

/// A write says its length twice, and both must be the same. More than was negotiated is refused: descriptors
/// may overlap, so that a little memory makes gigabytes of data.
fn write_size(size: u32, data_length: usize) -> Result<usize, Errno> {
    let length = to_usize(size)?;
    if size > MAX_DATA || length != data_length {
        Err(Errno::INVAL)
    } else {
        Ok(length)
    }
}

fn to_usize(size: u32) -> Result<usize, Errno> {
    usize::try_from(size).map_err(|_| Errno::INVAL)
}

fn write_out(written: usize) -> Result<WriteOut, Errno> {
    Ok(WriteOut {
        size: u32::try_from(written).map_err(|_| Errno::IO)?,
        padding: 0,
    })
}

fn put<T: IntoBytes + Immutable>(body: &mut Vec<u8>, value: &T) {
    body.extend_from_slice(value.as_bytes());
}

fn put_entry(body: &mut Vec<u8>, entry: &Entry) {
    put(body, &entry_out(entry));
}

fn put_opened(body: &mut Vec<u8>, (entry, opened): (Entry, Opened)) {
    put_entry(body, &entry);
    put(body, &open_out(opened));
}

fn put_size(body: &mut Vec<u8>, size: usize) -> Result<(), Errno> {
    put(
        body,
        &GetXattrOut {
            size: u32::try_from(size).map_err(|_| Errno::RANGE)?,
            padding: 0,
        },
    );
    Ok(())
}
