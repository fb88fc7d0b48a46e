// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a tar stream says of one entry.

use super::sparse::Sparse;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, whose content follows.
    File,
    /// A directory.
    Directory,
    /// A symlink to this target.
    Symlink(Vec<u8>),
    /// Another name of this earlier entry.
    HardLink(Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A character device of this major and minor number.
    CharacterDevice(u32, u32),
    /// A block device of this major and minor number.
    BlockDevice(u32, u32),
}

/// One entry: all but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path, as it stands in the stream.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content in the stream.
    pub size: u64,
    /// Of a sparse file, which parts its content is.
    pub sparse: Option<Sparse>,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
