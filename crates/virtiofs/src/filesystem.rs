// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a file system answers: the trait between the FUSE server and what lies behind it.

use std::ffi::CStr;
use std::time::Duration;

use rustix::io::Errno;

use crate::buffers::{Destination, Source};
use crate::fuse::abi::{Attr, StatfsOut};
use crate::fuse::{Name, SetAttr};

/// What an operation gives; the error number goes to the guest as it is.
pub type Result<T> = std::result::Result<T, Errno>;

/// The number by which guest and file system speak of an inode. The guest may send any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// The number by which guest and file system speak of an open file. The guest may send any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(pub u64);

/// On whose behalf the guest's kernel asks, by the guest's word. What is made belongs to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

/// A node that got one more reference, for the guest to FORGET.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Its attributes.
    pub attributes: Attr,
    /// For how long the guest may take the name for granted.
    pub entry_timeout: Duration,
    /// For how long the guest may take the attributes for granted.
    pub attribute_timeout: Duration,
}

/// What the guest's kernel and the server have agreed upon, as far as a file system cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Roots of mounts may be marked in [`Attr::flags`].
    pub submounts: bool,
    /// The guest collects writes in its page cache.
    pub writeback_cache: bool,
}

/// A file that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle that names it from now on.
    pub handle: HandleId,
    /// `FOPEN_` flags ([`open_out`](crate::fuse::flags::open_out)).
    pub open_flags: u32,
}

/// How the guest wants a file opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenMode {
    /// `O_` flags of the guest's `open`.
    pub flags: u32,
    /// Set-user-id and set-group-id go when the file is truncated.
    pub kill_suidgid: bool,
}

/// How a WRITE is meant.
#[derive(Clone, Copy, Debug)]
pub struct WriteMode {
    /// The data goes to the end of the file, wherever that is now.
    pub append: bool,
    /// Set-user-id and set-group-id go.
    pub kill_suidgid: bool,
}

/// Which bytes COPY_FILE_RANGE copies where.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct CopyRange {
    pub from: (NodeId, HandleId),
    pub from_offset: u64,
    pub to: (NodeId, HandleId),
    pub to_offset: u64,
    pub length: u64,
}

/// One entry of a directory, as READDIR gives it.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'d> {
    /// Inode number.
    pub inode: u64,
    /// Where reading goes on behind this entry.
    pub next_offset: u64,
    /// `DT_` type.
    pub kind: u32,
    /// The name; `.` and `..` occur.
    pub name: &'d CStr,
}

/// Takes the entries of a directory for as long as the reply has room.
pub trait EntrySink {
    /// Whether an entry with a name of `length` bytes still fits. To be asked before a node gets a
    /// reference on behalf of the entry.
    fn fits(&self, length: usize) -> bool;
    /// Adds an entry; with `node`, READDIRPLUS gives the guest a reference to it.
    fn push(&mut self, entry: DirectoryEntry<'_>, node: Option<Entry>);
    /// Bytes that are left.
    fn room(&self) -> usize;
}

/// A file system behind a [`Server`](crate::server::Server).
///
/// Names and flags were checked for form, numbers were not: a node or handle that the file system never gave
/// is to be answered with an error. Operations that are left out answer `ENOSYS`, upon which Linux does
/// without them.
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync {
    /// A guest's kernel has said INIT: everything that an earlier one held is gone.
    fn init(&self, negotiated: Negotiated) {}

    /// The guest's kernel has unmounted: nothing is held any longer.
    fn destroy(&self) {}

    /// Finds `name` in the directory `parent`; the node gets one more reference.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Takes `count` references from a node. A guest that gives back more than it has only harms itself.
    fn forget(&self, node: NodeId, count: u64) {}

    /// Attributes, and for how long the guest may take them for granted.
    fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Duration)>;

    /// Changes attributes.
    fn setattr(&self, node: NodeId, change: &SetAttr) -> Result<(Attr, Duration)> {
        Err(Errno::NOSYS)
    }

    /// Writes the target of a symbolic link to the end of `target`.
    fn readlink(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Makes a symbolic link.
    fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a file of any type but directory and symbolic link.
    fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a directory.
    fn mkdir(&self, caller: Caller, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Removes the name of something that is no directory.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Removes an empty directory.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Renames, with the flags of `renameat2`.
    fn rename(&self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), flags: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Gives the node another name.
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Opens a regular file.
    fn open(&self, node: NodeId, mode: OpenMode) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    /// Makes a regular file, unless it is there, and opens it.
    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Makes a regular file without a name, and opens it.
    fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        permissions: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Reads at `offset` into the guest's buffers, as much as they hold; says how many bytes.
    fn read(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        into: &Destination<'_>,
    ) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// Writes the guest's buffers at `offset`; says how many bytes.
    fn write(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        from: &Source<'_>,
        mode: WriteMode,
    ) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// Each close of a descriptor in the guest: errors of earlier writes may be said now.
    fn flush(&self, node: NodeId, handle: HandleId) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The handle is closed for good.
    fn release(&self, node: NodeId, handle: HandleId) -> Result<()> {
        Ok(())
    }

    /// Writes a file to stable storage.
    fn fsync(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Opens a directory.
    fn opendir(&self, node: NodeId) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    /// Gives the entries from `offset` on to `sink`, with a reference to each node if `plus`.
    fn readdir(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        plus: bool,
        sink: &mut dyn EntrySink,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The handle is closed for good.
    fn releasedir(&self, node: NodeId, handle: HandleId) -> Result<()> {
        Ok(())
    }

    /// Writes a directory to stable storage.
    fn fsyncdir(&self, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// What `statfs` says.
    fn statfs(&self, node: NodeId) -> Result<StatfsOut> {
        Err(Errno::NOSYS)
    }

    /// Sets an extended attribute, with the flags of `setxattr`.
    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Writes an extended attribute into `value`; its length is the answer. An empty `value` asks for the
    /// length alone.
    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// The names of all extended attributes, each with its NUL, at the end of `names`.
    fn listxattr(&self, node: NodeId, names: &mut Vec<u8>) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Removes an extended attribute.
    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Reserves or frees a range of a file, with the modes of `fallocate`.
    fn fallocate(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Finds the next data or hole from `offset` on.
    fn lseek(&self, node: NodeId, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Copies within the host; says how many bytes.
    fn copy_file_range(&self, range: &CopyRange) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// Writes everything of the file system that holds the node to stable storage.
    fn syncfs(&self, node: NodeId) -> Result<()> {
        Err(Errno::NOSYS)
    }
}
