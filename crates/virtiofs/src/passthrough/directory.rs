// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading directories.

use std::mem::MaybeUninit;

use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::Errno;

use super::PassthroughFs;
use super::inode::Inode;
use crate::filesystem::{DirectoryEntry, Entry, EntrySink, HandleId, NodeId, Result};
use crate::fuse::Name;
use crate::fuse::abi::ROOT_ID;

/// The most that is read from the host at a time. Linux asks for one page of entries.
const MAX_BUFFER: usize = 16 * 1024;
/// The least: room for a few entries with the longest name.
const MIN_BUFFER: usize = 1024;

impl PassthroughFs {
    pub(super) fn read_directory(
        &self,
        node: NodeId,
        id: HandleId,
        offset: u64,
        plus: bool,
        sink: &mut dyn EntrySink,
    ) -> Result<()> {
        let inode = self.inodes.get(node)?;
        let handle = self.handles.directory(node, id)?;
        let _position = handle.lock_position()?;
        rustix::fs::seek(&*handle, SeekFrom::Start(offset))?;

        // With attributes an entry is some five times as large as without; what was read from the host and
        // does not fit is read again.
        let wanted = if plus { sink.room() / 4 } else { sink.room() };
        let mut buffer = [MaybeUninit::uninit(); MAX_BUFFER];
        let mut entries = RawDir::new(
            &*handle,
            &mut buffer[..wanted.clamp(MIN_BUFFER, MAX_BUFFER)],
        );
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if !sink.fits(name.count_bytes()) {
                break;
            }
            let found = match Name::new(name) {
                Ok(name) if plus => self.find_listed(&inode, name)?,
                _ => Listed::WithoutNode,
            };
            let entry = DirectoryEntry {
                // What is above the root of the share is none of the guest's business.
                inode: if node.0 == ROOT_ID && name == c".." {
                    ROOT_ID
                } else {
                    entry.ino()
                },
                next_offset: entry.next_entry_cookie(),
                kind: kind_number(entry.file_type()),
                name,
            };
            match found {
                Listed::Gone => {}
                Listed::WithoutNode => sink.push(entry, None),
                Listed::Node(found) => sink.push(entry, Some(found)),
            }
        }
        Ok(())
    }

    /// What READDIRPLUS says beyond READDIR is a favour: if it cannot be said, the name still can.
    fn find_listed(&self, directory: &Inode, name: Name<'_>) -> Result<Listed> {
        match self.find_in(directory, name) {
            Ok(entry) => Ok(Listed::Node(entry)),
            Err(Errno::NOENT) => Ok(Listed::Gone),
            Err(_) => Ok(Listed::WithoutNode),
        }
    }

    pub(super) fn sync_directory(&self, node: NodeId, id: HandleId, data_only: bool) -> Result<()> {
        let handle = self.handles.directory(node, id)?;
        if data_only {
            rustix::fs::fdatasync(&*handle)
        } else {
            rustix::fs::fsync(&*handle)
        }
    }
}

enum Listed {
    Node(Entry),
    WithoutNode,
    Gone,
}

/// The `DT_` number of a type.
fn kind_number(kind: FileType) -> u32 {
    kind.as_raw_mode() >> 12
}
