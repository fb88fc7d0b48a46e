// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image layout in a tar archive. The archive is read through once for the places of its
//! files; blobs are then read where they lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::ImageError;
use super::member::Member;
use crate::tarball::{Entries, Kind};

/// Most entries of an archive; an image has a few hundred.
const ENTRY_LIMIT: u64 = 100_000;

/// An opened archive.
#[derive(Debug)]
pub(super) struct Archive {
    members: HashMap<String, Member>,
}

impl Archive {
    pub(super) fn new(path: &Path, file: File, size: u64) -> Result<Self, ImageError> {
        let file = Arc::new(file);
        let whole = Member::new(Arc::clone(&file), 0, size);
        if let Some(format) = compression(&whole) {
            return Err(ImageError::CompressedArchive {
                path: path.to_owned(),
                format,
            });
        }
        let failed = |source| ImageError::Archive {
            path: path.to_owned(),
            source,
        };
        let mut entries = Entries::with_skip(whole, Member::skip);
        let mut members = HashMap::new();
        let mut count = 0;
        while let Some(entry) = entries.next().map_err(failed)? {
            count += 1;
            if count > ENTRY_LIMIT {
                return Err(ImageError::ArchiveEntries {
                    path: path.to_owned(),
                    limit: ENTRY_LIMIT,
                });
            }
            if entry.kind == Kind::File
                && let Some(name) = layout_name(&entry.path)
            {
                // As when unpacking, the last of a name counts.
                members.insert(
                    name,
                    Member::new(Arc::clone(&file), entries.offset(), entry.size),
                );
            }
        }
        Ok(Self { members })
    }

    /// The file `name`, a path below the layout.
    pub(super) fn member(&self, name: &str) -> Option<Member> {
        self.members.get(name).cloned()
    }
}

/// The path below the layout, if it is one that a layout has.
fn layout_name(path: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(path).ok()?;
    let name = name.strip_prefix("./").unwrap_or(name);
    (matches!(name, "oci-layout" | "index.json") || name.starts_with("blobs/"))
        .then(|| name.to_owned())
}

fn compression(archive: &Member) -> Option<&'static str> {
    let mut magic = Vec::new();
    archive.clone().take(6).read_to_end(&mut magic).ok()?;
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        _ => None,
    }
}
