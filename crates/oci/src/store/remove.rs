// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking names away, and removing what no name needs any more.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tracing::warn;

use super::error::{StoreError, io_error};
use super::files::remove_file;
use super::{Store, StoredImage};
use crate::digest::{ContentError, Digest};
use crate::image::{Descriptor, Image, ImageError, Source};

/// Most manifests and indexes that are followed from the names.
const DOCUMENT_LIMIT: usize = 100_000;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Unpacked images.
    pub trees: u64,
    /// Unpacked images that nothing refers to, but that are in use.
    pub kept_trees: u64,
    /// Whether blobs stay for now because an image is being added or unpacked: [`Store::prune`] removes them later.
    pub kept_blobs: bool,
}

impl Store {
    /// Takes the name of `image` away from it, and removes what no other name needs: blobs, and the unpacked image unless
    /// it is in use or to be kept, by its chain id, for a container that does not run.
    ///
    /// # Errors
    /// Where the name is gone by now, or stands for another image, or something cannot be removed.
    pub fn remove(
        &self,
        image: &StoredImage,
        keep: &dyn Fn(&Digest) -> bool,
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        match self.take_name(image) {
            // An image that has its name is whole without its tree, should this go no further.
            Err(error) if is_full_disk(&error) => {
                self.remove_own_tree(image, keep, &mut removed)?;
                self.take_name(image)?;
                // It is dealt with.
                self.remove_blobs(&mut removed)?;
                return Ok(removed);
            }
            taken => taken?,
        }
        // An image that cannot be read has no tree that could be told to be its own.
        let chain_id = image.image.as_ref().ok().map(Image::chain_id);
        self.remove_blobs(&mut removed)?;
        if let Some(chain_id) = chain_id
            && !self.chain_ids()?.contains(&chain_id)
        {
            self.remove_tree(&chain_id, keep, &mut removed)?;
        }
        Ok(removed)
    }

    /// Takes the name of `image` away from it.
    fn take_name(&self, image: &StoredImage) -> Result<(), StoreError> {
        let _lock = self.locks.index()?;
        let mut index = self.read_index()?;
        let name = || Box::new(image.name.clone());
        let mut entries = index.named().filter(|(name, _)| *name == image.name);
        let (_, now) = entries
            .next()
            .ok_or_else(|| StoreError::NoSuchImage(name()))?;
        if now.digest != image.digest {
            return Err(StoreError::Replaced(name()));
        }
        drop(entries);
        index.remove(&image.name);
        self.write_index(&index)
    }

    /// Removes the unpacked image of this name, if it is no other's, nor in use or to be kept.
    fn remove_own_tree(
        &self,
        image: &StoredImage,
        keep: &dyn Fn(&Digest) -> bool,
        removed: &mut Removed,
    ) -> Result<(), StoreError> {
        let Ok(chain_id) = image.image.as_ref().map(Image::chain_id) else {
            return Ok(());
        };
        let is_same =
            |other: &StoredImage| matches!(&other.image, Ok(other) if other.chain_id() == chain_id);
        let mut others = self.images()?.into_iter();
        if others.any(|other| other.name != image.name && is_same(&other)) {
            return Ok(());
        }
        self.remove_tree(&chain_id, keep, removed)
    }

    /// Removes what no name needs, and what dead processes left: blobs, and unpacked images, of layouts beside the store
    /// as well, that are neither in use nor to be kept.
    ///
    /// # Errors
    /// Where something cannot be removed, or an image cannot be read, so that it is not known what it needs.
    pub fn prune(&self, keep: &dyn Fn(&Digest) -> bool) -> Result<Removed, StoreError> {
        self.remove_stale();
        let mut removed = Removed::default();
        self.remove_blobs(&mut removed)?;
        let named = self.chain_ids()?;
        let trees: Vec<Digest> = self.trees().map(|(_, chain_id)| chain_id).collect();
        for chain_id in trees.iter().filter(|chain_id| !named.contains(chain_id)) {
            self.remove_tree(chain_id, keep, &mut removed)?;
        }
        Ok(removed)
    }

    /// The chain ids of all images that have a name and can be read.
    fn chain_ids(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let images = self.images()?.into_iter();
        Ok(images
            .filter_map(|stored| stored.image.ok())
            .map(|image| image.chain_id())
            .collect())
    }

    fn remove_tree(
        &self,
        chain_id: &Digest,
        keep: &dyn Fn(&Digest) -> bool,
        removed: &mut Removed,
    ) -> Result<(), StoreError> {
        let tree = self.tree(chain_id);
        if !tree.exists() {
            return Ok(());
        }
        if keep(chain_id) {
            removed.kept_trees += 1;
            return Ok(());
        }
        match self.locks.try_tree(chain_id.hex())? {
            Some(lock) => {
                self.discard(&tree, chain_id.hex())?;
                lock.remove();
                removed.trees += 1;
            }
            None => removed.kept_trees += 1,
        }
        Ok(())
    }

    /// Removes blobs that no name leads to.
    fn remove_blobs(&self, removed: &mut Removed) -> Result<(), StoreError> {
        let Some(_lock) = self.locks.try_blobs()? else {
            removed.kept_blobs = true;
            return Ok(());
        };
        // Nobody adds a name to blobs that are not here, and nobody has blobs on the way.
        let _index = self.locks.index()?;
        let needed = self.needed()?;
        let blobs = self.images.join("blobs");
        for algorithm in entries(&blobs)? {
            for blob in entries(&algorithm.path())? {
                let text = [algorithm.file_name(), blob.file_name()].map(|name| name.into_string());
                let [Ok(algorithm), Ok(hex)] = text else {
                    continue;
                };
                // What is not named by a digest is no blob of ours.
                let digest = format!("{algorithm}:{hex}").parse::<Digest>();
                if digest.is_ok_and(|digest| !needed.contains(&digest)) {
                    let path = blob.path();
                    removed.bytes += blob.metadata().map_or(0, |metadata| metadata.len());
                    removed.blobs += 1;
                    remove_file(&path).map_err(io_error("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// All blobs that names lead to, there or not.
    fn needed(&self) -> Result<HashSet<Digest>, StoreError> {
        let source = Source::open(&self.images)?;
        let mut needed = HashSet::new();
        let mut pending: Vec<Descriptor> = self
            .read_index()?
            .entries()
            .map(|(_, descriptor)| descriptor)
            .collect();
        // Apart from what is needed: a document can be named as another image's layer as well.
        let mut followed = HashSet::new();
        while let Some(descriptor) = pending.pop() {
            if !followed.insert((descriptor.digest.clone(), descriptor.media_type.clone())) {
                continue;
            }
            needed.insert(descriptor.digest.clone());
            if followed.len() > DOCUMENT_LIMIT {
                let (path, limit) = (self.images.clone(), DOCUMENT_LIMIT);
                return Err(ImageError::TooManyDocuments { path, limit }.into());
            }
            match source.references(&descriptor) {
                Ok(references) => {
                    let blobs = references.blobs.into_iter().map(|blob| blob.digest);
                    needed.extend(blobs);
                    pending.extend(references.documents);
                }
                // Of another platform, and never fetched.
                Err(ImageError::MissingBlob { .. }) => {}
                // Of no use to anybody, and so is what it may have referred to.
                Err(error) if is_damage(&error) => {
                    warn!(digest = %descriptor.digest, %error, "an image of the store is damaged");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(needed)
    }
}

/// Whether something could not be written for lack of room.
fn is_full_disk(error: &StoreError) -> bool {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    matches!(error, StoreError::Io { source, .. } if full.contains(&source.kind()))
}

/// Whether a document is not what it should be, rather than unreadable for now.
fn is_damage(error: &ImageError) -> bool {
    match error {
        ImageError::Json { .. } | ImageError::TooLarge { .. } => true,
        ImageError::Read { source, .. } => source
            .get_ref()
            .is_some_and(|source| source.is::<ContentError>()),
        _ => false,
    }
}

fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, StoreError> {
    fs::read_dir(path)
        .and_then(Iterator::collect)
        .map_err(io_error("list", path))
}
