// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reply to READDIR and READDIRPLUS: a run of records, each padded to a multiple of 8 bytes.

use zerocopy::IntoBytes;

use super::encode::entry_out;
use crate::filesystem::{DirectoryEntry, Entry, EntrySink};
use crate::fuse::abi::{Dirent, EntryOut};

/// Collects entries for as long as they fit.
pub(super) struct Entries<'r> {
    reply: &'r mut Vec<u8>,
    limit: usize,
    plus: bool,
}

impl<'r> Entries<'r> {
    /// Appends to `reply`, which may grow to `limit` bytes.
    pub(super) fn new(reply: &'r mut Vec<u8>, limit: usize, plus: bool) -> Self {
        Self { reply, limit, plus }
    }
}

impl EntrySink for Entries<'_> {
    fn fits(&self, length: usize) -> bool {
        let head = size_of::<Dirent>() + if self.plus { size_of::<EntryOut>() } else { 0 };
        (head + length).next_multiple_of(8) <= self.room()
    }

    fn push(&mut self, entry: DirectoryEntry<'_>, node: Option<Entry>) {
        let name = entry.name.to_bytes();
        let Ok(namelen) = u32::try_from(name.len()) else {
            return;
        };
        if !self.fits(name.len()) {
            return;
        }
        if self.plus {
            // A node of 0 tells the guest that there is a name and nothing else.
            let out = node.map_or_else(EntryOut::default, |node| entry_out(&node));
            self.reply.extend_from_slice(out.as_bytes());
        }
        let dirent = Dirent {
            ino: entry.inode,
            off: entry.next_offset,
            namelen,
            kind: entry.kind,
        };
        self.reply.extend_from_slice(dirent.as_bytes());
        self.reply.extend_from_slice(name);
        self.reply.resize(self.reply.len().next_multiple_of(8), 0);
    }

    fn room(&self) -> usize {
        self.limit.saturating_sub(self.reply.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_never_outgrow_the_reply(
            limit in 0_usize..600,
            plus: bool,
            names in prop::collection::vec("[a-z]{1,60}", 0..12),
        ) {
            let mut reply = Vec::new();
            let mut entries = Entries::new(&mut reply, limit, plus);

            for name in names {
                let name = std::ffi::CString::new(name).unwrap();
                let entry = DirectoryEntry { inode: 1, next_offset: 1, kind: 8, name: &name };
                let (fits, before) = (entries.fits(name.count_bytes()), entries.room());
                entries.push(entry, None);
                prop_assert_eq!(entries.room() < before, fits);
            }

            prop_assert!(reply.len() <= limit);
            prop_assert_eq!(reply.len() % 8, 0);
        }
    }
}
