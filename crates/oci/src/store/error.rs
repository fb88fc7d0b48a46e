// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with the store, or with what is put in it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::lock::LOCK_DEADLINE;
use crate::digest::{ContentError, Digest};
use crate::image::{ImageError, Name};
use crate::own_directory::OwnDirectoryError;
use crate::unpack::UnpackError;

/// A failure of the store, or of what was to be put in it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A part of the store cannot be made, opened or removed.
    #[error("image store: cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others than the owner have a say in a directory of the store.
    #[error(transparent)]
    Directory(#[from] OwnDirectoryError),
    /// A tree that was there cannot be used.
    #[error("{}: the unpacked image did not outlive a crash of this host, or is being made or removed; run it again", .0.display())]
    NotWhole(PathBuf),
    /// Another process holds a lock for too long.
    #[error("image store: another process holds {} and has not finished in {} seconds", .path.display(), LOCK_DEADLINE.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The index is no index.
    #[error("image store: {} is not valid", .path.display())]
    Index {
        /// Path of the index.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No image has the name.
    #[error("there is no image {}", .0.familiar())]
    NoSuchImage(Box<Name>),
    /// The name stands for another image than it did.
    #[error("image {} was replaced meanwhile", .0.familiar())]
    Replaced(Box<Name>),
    /// An image that is added lacks a blob.
    #[error("image {} is incomplete: layer {digest} is missing", .name.familiar())]
    Incomplete {
        /// The image.
        name: Box<Name>,
        /// What is missing.
        digest: Digest,
    },
    /// The name asks for another digest than the image has.
    #[error("image {} has the digest {found}", .name.familiar())]
    OtherDigest {
        /// The name, with the digest that it asks for.
        name: Box<Name>,
        /// The image's.
        found: Digest,
    },
    /// A blob that is received is not what it should be.
    #[error("a blob cannot be added to the image store")]
    Content(#[from] ContentError),
    /// An image of the store, or one to be added, cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
