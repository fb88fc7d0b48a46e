// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that are kept: under names, and unpacked.
//!
//! ```text
//! <root>/images/                       an OCI image layout, which other tools read
//!   oci-layout, index.json, blobs/     names, and what they stand for, by digest
//!   trees/<algorithm>/<chain id>/      an unpacked image: whole since it has this name, never changed
//!   tmp/                               blobs and trees in the making
//!   locks/                             see `lock`
//! ```
//!
//! What is made has a temporary name until it is whole: whatever dies, a blob, a tree or the index is there whole or
//! not at all. What a dead process leaves is removed by the next that opens the store, known by its lock being free.
//!
//! ```text
//! index      names                  receive    blobs on their way in
//! trees      unpacked images        remove     names, and what no name needs any more
//! lock       who may do what          damage     blobs that are not what they were
//! ```

mod damage;
mod error;
mod files;
mod index;
mod lock;
mod receive;
mod remove;
mod trees;

use std::fs::File;
use std::path::{Path, PathBuf};

use self::error::io_error;
use self::lock::Locks;
use crate::digest::Digest;
use crate::image::{Image, ImageError, Name, Source};
use crate::own_directory;

pub use self::error::StoreError;
pub use self::lock::Lease;
pub use self::receive::{BlobWriter, Receiving};
pub use self::remove::Removed;
pub use self::trees::Rootfs;

/// The store, in a directory that only its owner may enter: it holds set-user-ID programs of
/// images, which users of the host must not reach.
#[derive(Clone, Debug)]
pub struct Store {
    images: PathBuf,
    locks: Locks,
}

/// An image by its name.
#[derive(Debug)]
pub struct StoredImage {
    /// Its name.
    pub name: Name,
    /// Digest of the manifest or index that the name stands for.
    pub digest: Digest,
    /// What is in it for this platform, unless that cannot be read.
    pub image: Result<Image, ImageError>,
}

/// An image that was found by its name, with all that it takes to unpack it.
#[derive(Debug)]
pub struct Found {
    /// What the name stands for.
    pub stored: StoredImage,
    /// Where its blobs are.
    pub source: Source,
    /// Keeps them there.
    pub lease: Lease,
}

impl Store {
    /// Opens the store below `root`, made where it is missing, and removes what dead processes
    /// left in it.
    ///
    /// # Errors
    /// Where a directory cannot be made, or others than this user may write to it.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let store = Self::at(root.as_ref());
        own_directory::make(&store.images)?;
        for name in ["tmp", "locks", "trees", "blobs"] {
            own_directory::make(&store.images.join(name))?;
        }
        store.make_layout()?;
        store.remove_stale();
        Ok(store)
    }

    /// Removes what dead processes left half done in the store below `root`, which need not exist, and writes out trees
    /// that nobody has written out.
    pub fn sweep(root: impl AsRef<Path>) {
        let store = Self::at(root.as_ref());
        store.remove_stale();
        store.write_out_trees();
    }

    /// Path of the image layout.
    pub fn layout(&self) -> &Path {
        &self.images
    }

    fn at(root: &Path) -> Self {
        let images = root.join("images");
        Self {
            locks: Locks::new(images.join("locks")),
            images,
        }
    }

    fn temporaries(&self) -> PathBuf {
        self.images.join("tmp")
    }

    /// All images that have a name, sorted by it.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let _lease = self.locks.share_blobs()?;
        let source = Source::open(&self.images)?;
        let mut images: Vec<StoredImage> = self
            .read_index()?
            .named()
            .map(|(name, descriptor)| StoredImage {
                name,
                digest: descriptor.digest.clone(),
                image: source.image_of(&descriptor),
            })
            .collect();
        images.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(images)
    }

    /// The image `name`; its blobs stay while the outcome lives.
    ///
    /// A name with a digest finds any image of its repository that has this digest, whatever its tag.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn find(&self, name: &Name) -> Result<Option<Found>, StoreError> {
        let lease = self.locks.share_blobs()?;
        let Some((found, descriptor)) = self.read_index()?.find(name) else {
            return Ok(None);
        };
        let source = Source::open(&self.images)?;
        let stored = StoredImage {
            name: found,
            digest: descriptor.digest.clone(),
            image: source.image_of(&descriptor),
        };
        Ok(Some(Found {
            stored,
            source,
            lease,
        }))
    }

    /// Gives what `name` stands for another name as well, which is taken from what had it.
    ///
    /// # Errors
    /// Where there is no such image.
    pub fn tag(&self, name: &Name, other: &Name) -> Result<(), StoreError> {
        let _lock = self.locks.index()?;
        let mut index = self.read_index()?;
        let (_, descriptor) = index
            .find(name)
            .ok_or_else(|| StoreError::NoSuchImage(Box::new(name.clone())))?;
        index.set(other, &descriptor);
        self.write_index(&index)
    }

    /// Removes what dead processes left. What cannot be removed is in nobody's way.
    fn remove_stale(&self) {
        self.remove_stale_trees();
        self.remove_stale_blobs();
    }

    fn sync_directory(&self, path: &Path) -> Result<(), StoreError> {
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error("write out", path))
    }
}
