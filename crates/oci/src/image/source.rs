// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A layout, wherever it is kept: its documents and blobs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;

use super::archive::{self, Members};
use super::docker::Docker;
use super::layout::Layout;
use super::member::Member;
use super::tag::Named;
use super::{Descriptor, ImageError, Index};
use crate::digest::{ContentError, Verified};

/// Most bytes of a JSON document; registries accept no larger ones either.
pub(super) const DOCUMENT_LIMIT: u64 = 4 << 20;

/// An opened image layout.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    storage: Storage,
}

/// How it is kept.
#[derive(Debug)]
pub(super) enum Storage {
    Directory(Layout),
    Archive(Members),
    Docker(Docker),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

impl Source {
    /// Opens the layout at `path`: a directory, or a tar archive.
    ///
    /// # Errors
    /// Where there is none, or its top-level files are missing or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        let path = path.as_ref();
        let file = open_without_waiting(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing(path.to_owned()),
            _ => ImageError::Open {
                path: path.to_owned(),
                source,
            },
        })?;
        let metadata = file.metadata().map_err(|source| ImageError::Open {
            path: path.to_owned(),
            source,
        })?;
        let storage = if metadata.is_dir() {
            Storage::Directory(Layout::new(file))
        } else if metadata.is_file() {
            archive::open(path, file, metadata.len())?
        } else {
            return Err(ImageError::Kind(path.to_owned()));
        };
        let source = Self {
            path: path.to_owned(),
            storage,
        };
        if source.docker().is_none() {
            source.check_layout()?;
        }
        Ok(source)
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its images, as they are written there: tags in layouts, whole names in archives of docker.
    ///
    /// # Errors
    /// Where the index is missing or damaged.
    pub fn names(&self) -> Result<Vec<String>, ImageError> {
        if let Some(docker) = self.docker() {
            return Ok(docker.names().map(str::to_owned).collect());
        }
        let index = self.index()?;
        let names = index.manifests.iter().flat_map(Named::names);
        Ok(names.map(str::to_owned).collect())
    }

    /// The layout's own index; of an archive of docker, one that is made up of all images in it.
    ///
    /// # Errors
    /// Where it is missing or damaged, or cannot be made up since an image is incomplete.
    pub fn index(&self) -> Result<Index, ImageError> {
        if let Some(docker) = self.docker() {
            return docker.index();
        }
        let bytes = self.top_level("index.json")?;
        Index::from_json(&bytes).map_err(|source| self.json_error("the index", source))
    }

    /// The blob that `descriptor` names; `what` it is, for messages.
    ///
    /// # Errors
    /// Where it is missing, or has another size. Its content is checked as it is read.
    pub fn blob(&self, descriptor: &Descriptor, what: &str) -> Result<Blob, ImageError> {
        let digest = &descriptor.digest;
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        let member = self
            .member(&name, what)?
            .ok_or_else(|| ImageError::MissingBlob {
                path: self.path.clone(),
                what: what.to_owned(),
                digest: digest.clone(),
            })?;
        if member.remaining() != descriptor.size {
            let source = ContentError::Size {
                digest: digest.clone(),
                expected: descriptor.size,
                found: member.remaining(),
            };
            return Err(self.read_error(what, source.into()));
        }
        Ok(Verified::new(member, digest.clone(), descriptor.size))
    }

    /// The whole of the JSON document that `descriptor` names.
    pub(super) fn document(
        &self,
        descriptor: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        self.require_document_size(descriptor.size, what)?;
        let mut bytes = Vec::new();
        self.blob(descriptor, what)?
            .read_to_end(&mut bytes)
            .map_err(|source| self.read_error(what, source))?;
        Ok(bytes)
    }

    pub(super) fn json_error(&self, what: &str, source: serde_json::Error) -> ImageError {
        ImageError::Json {
            path: self.path.clone(),
            what: what.to_owned(),
            source,
        }
    }

    fn check_layout(&self) -> Result<(), ImageError> {
        let bytes = self.top_level("oci-layout")?;
        let layout: LayoutFile = serde_json::from_slice(&bytes)
            .map_err(|source| self.json_error("the oci-layout file", source))?;
        if layout.image_layout_version.split('.').next() != Some("1") {
            let version = layout
                .image_layout_version
                .escape_debug()
                .take(40)
                .collect();
            return Err(ImageError::LayoutVersion {
                path: self.path.clone(),
                version,
            });
        }
        Ok(())
    }

    fn top_level(&self, name: &'static str) -> Result<Vec<u8>, ImageError> {
        let what = format!("file {name}");
        let member = self
            .member(name, &what)?
            .ok_or_else(|| ImageError::NotALayout {
                path: self.path.clone(),
                missing: name,
            })?;
        self.require_document_size(member.remaining(), &what)?;
        let mut bytes = Vec::new();
        member
            .take(DOCUMENT_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|source| self.read_error(&what, source))?;
        Ok(bytes)
    }

    fn require_document_size(&self, size: u64, what: &str) -> Result<(), ImageError> {
        if size > DOCUMENT_LIMIT {
            let (path, what) = (self.path.clone(), what.to_owned());
            return Err(ImageError::TooLarge {
                path,
                what,
                size,
                limit: DOCUMENT_LIMIT,
            });
        }
        Ok(())
    }

    fn member(&self, name: &str, what: &str) -> Result<Option<Member>, ImageError> {
        match &self.storage {
            Storage::Directory(layout) => layout
                .member(name)
                .map_err(|source| self.read_error(what, source)),
            Storage::Archive(members) => Ok(members.get(name)),
            Storage::Docker(docker) => Ok(docker.member(name)),
        }
    }

    pub(super) fn docker(&self) -> Option<&Docker> {
        match &self.storage {
            Storage::Docker(docker) => Some(docker),
            _ => None,
        }
    }

    pub(crate) fn read_error(&self, what: &str, source: io::Error) -> ImageError {
        ImageError::Read {
            path: self.path.clone(),
            what: what.to_owned(),
            source,
        }
    }
}

/// A blob's content; the end is reported only where digest and size are right.
pub type Blob = Verified<Member>;

/// Opens a file or directory; a FIFO without a writer does not hold the caller up.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
}
