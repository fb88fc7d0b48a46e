// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image in a tar archive: a layout, or what `docker save` writes. The archive is read through once for the places
//! of its files; blobs are then read where they lie.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::ImageError;
use super::compression::Format;
use super::docker::{self, Docker};
use super::member::Member;
use super::source::Storage;
use crate::tarball::{Entries, Kind};

/// Most entries of an archive; an image has a few hundred.
const ENTRY_LIMIT: u64 = 100_000;
/// Longest name that is remembered; those of images are short.
const NAME_LIMIT: usize = 1024;
/// Most links from one name to another that are followed.
const LINK_LIMIT: usize = 8;

/// Reads the archive in `file`, and tells what it is.
pub(super) fn open(path: &Path, file: File, size: u64) -> Result<Storage, ImageError> {
    let whole = Member::new(Arc::new(file), 0, size);
    if let Some(format) = Format::of(&whole) {
        return Err(ImageError::CompressedArchive {
            path: path.to_owned(),
            format: format.name(),
        });
    }
    let members = Members::read(path, whole)?;
    // Archives of newer dockers are layouts as well, and say more as such.
    if members.get("oci-layout").is_none() && members.get(docker::MANIFEST).is_some() {
        return Docker::new(path, members).map(Storage::Docker);
    }
    Ok(Storage::Archive(members))
}

/// The files of an archive, by their names.
#[derive(Debug, Default)]
pub(super) struct Members {
    files: HashMap<String, Member>,
    /// Other names of files, with the names that they lead to.
    links: HashMap<String, String>,
}

impl Members {
    fn read(path: &Path, whole: Member) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Archive {
            path: path.to_owned(),
            source,
        };
        let mut members = Self::default();
        let mut entries = Entries::with_skip(whole.clone(), Member::skip);
        let mut count = 0;
        while let Some(entry) = entries.next().map_err(failed)? {
            count += 1;
            if count > ENTRY_LIMIT {
                return Err(ImageError::ArchiveEntries {
                    path: path.to_owned(),
                    limit: ENTRY_LIMIT,
                });
            }
            let Some(name) = file_name("", &entry.path) else {
                continue;
            };
            // As when unpacking, the last of a name counts.
            members.files.remove(&name);
            members.links.remove(&name);
            let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
            match &entry.kind {
                Kind::File => {
                    let mut content = whole.clone();
                    if content.skip(entries.offset()).is_ok() {
                        members.files.insert(name, content.cut(entry.size));
                    }
                }
                Kind::Symlink(target) => {
                    if let Some(target) = file_name(directory, target) {
                        members.links.insert(name, target);
                    }
                }
                Kind::HardLink(target) => {
                    if let Some(target) = file_name("", target) {
                        members.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(members)
    }

    /// The file `name`, a path below the layout, or what it is a link to.
    pub(super) fn get(&self, name: &str) -> Option<Member> {
        let mut name = name;
        for _ in 0..LINK_LIMIT {
            if let Some(member) = self.files.get(name) {
                return Some(member.clone());
            }
            name = self.links.get(name)?;
        }
        None
    }
}

/// The name that `path`, seen from `directory`, has in the archive; `None` where it leads out of it or is none that an
/// image's file has.
pub(super) fn file_name(directory: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    if path.len() > NAME_LIMIT || path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = directory
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("", "index.json", Some("index.json"))]
    #[case::dotted("", "./blobs//sha256/x", Some("blobs/sha256/x"))]
    #[case::beside("a", "layer.tar", Some("a/layer.tar"))]
    #[case::above("a/b", "../c/layer.tar", Some("a/c/layer.tar"))]
    #[case::out("a", "../../layer.tar", None)]
    #[case::absolute("a", "/layer.tar", None)]
    #[case::root("", "./", None)]
    fn name_is_found(#[case] directory: &str, #[case] path: &str, #[case] expected: Option<&str>) {
        assert_eq!(file_name(directory, path.as_bytes()).as_deref(), expected);
    }
}
