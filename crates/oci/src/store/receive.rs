// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images on their way into the store: blobs first, then the name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use super::damage::is_damaged;
use super::error::{StoreError, io_error};
use super::files::remove_file;
use super::lock::{self, Lease, Lock};
use super::{Store, StoredImage};
use crate::digest::{ContentError, Digest, Hasher};
use crate::image::{Descriptor, Name, Source};
use crate::own_directory;
use crate::unpack::Progress;

/// Bytes that are copied at once.
const BUFFER: usize = 256 << 10;
/// Most bytes of a blob that is read to see whether it is there: those of any document.
const READ_LIMIT: u64 = 4 << 20;

/// An image that is being added. Blobs may come in parallel; while this lives, none of them is removed, although no name
/// refers to them yet.
#[derive(Debug)]
pub struct Receiving<'s> {
    store: &'s Store,
    _lease: Lease,
}

/// A blob that is being added, removed unless it is committed.
#[derive(Debug)]
pub struct BlobWriter<'s> {
    store: &'s Store,
    path: PathBuf,
    file: Lock,
    digest: Digest,
    size: u64,
    written: u64,
    hasher: Hasher,
}

impl Store {
    /// Starts to add an image.
    ///
    /// # Errors
    /// Where blobs are being removed for too long.
    pub fn receive(&self) -> Result<Receiving<'_>, StoreError> {
        Ok(Receiving {
            store: self,
            _lease: self.locks.share_blobs()?,
        })
    }

    /// Copies the image for this platform out of `source`, by the name that it has there, and calls it `name`, which is
    /// taken from what had it. Every blob is checked.
    ///
    /// # Errors
    /// Where the image is not found, damaged, or cannot be written.
    pub fn add(
        &self,
        name: &Name,
        source: &Source,
        tag: Option<&str>,
        progress: Option<&dyn Progress>,
    ) -> Result<StoredImage, StoreError> {
        let image = source.image(tag)?;
        let receiving = self.receive()?;
        if let Some(progress) = progress {
            progress.begun(image.size(), image.layers.len());
        }
        let documents = [
            (&image.manifest, "manifest"),
            (&image.config_blob, "config"),
        ];
        for (descriptor, what) in documents {
            receiving.copy(source, descriptor, what, progress)?;
        }
        for (index, layer) in image.layers.iter().enumerate() {
            if let Some(progress) = progress {
                progress.layer_begun(index, layer);
            }
            receiving.copy(source, &layer.descriptor, "layer", progress)?;
            if let Some(progress) = progress {
                progress.layer_done(index);
            }
        }
        let manifest = &image.manifest;
        receiving.commit(name, &manifest.media_type, &manifest.digest, manifest.size)
    }

    /// Path of a blob.
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.images
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    /// Removes half-written blobs whose writers are gone.
    pub(super) fn remove_stale_blobs(&self) {
        for entry in fs::read_dir(self.temporaries())
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file
                && let Ok(Some(_lock)) = lock::try_exclusive(&entry.path())
                && let Err(error) = remove_file(&entry.path())
            {
                warn!(path = %entry.path().display(), %error, "a half-written blob cannot be removed");
            }
        }
    }
}

impl<'s> Receiving<'s> {
    /// Whether the store has this blob. A large one is not read for that: what is damaged in it is found out when it is
    /// unpacked.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        let path = self.store.blob_path(digest);
        let is_there = fs::symlink_metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
        let is_torn = || File::open(&path).and_then(|file| is_damaged(&file, digest));
        is_there && (size > READ_LIMIT || is_torn().is_ok_and(|damaged| !damaged))
    }

    /// Starts to add a blob.
    ///
    /// # Errors
    /// Where its file cannot be made.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<BlobWriter<'s>, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // No digest in front: a chain id could have the same one, and its tree this name.
        let name = |number| format!("blob-{}-{number}-{}", std::process::id(), digest.hex());
        let (path, file) = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = self.store.temporaries().join(name(number));
            // Somebody who tidies up may have it for a moment; the next name is as good.
            if let Some(file) = lock::try_exclusive(&path)? {
                break (path, file);
            }
        };
        let mut writer = BlobWriter {
            store: self.store,
            path,
            file,
            digest: digest.clone(),
            size,
            written: 0,
            hasher: Hasher::new(digest.algorithm()),
        };
        // Processes in other namespaces can have the same id.
        writer.restart()?;
        Ok(writer)
    }

    /// Lets `name` stand for the manifest or index of this digest, once the image in it for this platform is shown to be
    /// whole; the name is taken from what had it.
    ///
    /// # Errors
    /// Where a part of the image is missing, or there is none for this platform; or where `name` has another digest.
    pub fn commit(
        self,
        name: &Name,
        media_type: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<StoredImage, StoreError> {
        if name.digest().is_some_and(|wanted| wanted != digest) {
            return Err(StoreError::OtherDigest {
                name: Box::new(name.clone()),
                found: digest.clone(),
            });
        }
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: [].into(),
        };
        let image = Source::open(&self.store.images)?.image_of(&descriptor)?;
        for layer in &image.layers {
            if !self.has(&layer.descriptor.digest, layer.descriptor.size) {
                return Err(StoreError::Incomplete {
                    name: Box::new(name.clone()),
                    digest: layer.descriptor.digest.clone(),
                });
            }
        }
        let _lock = self.store.locks.index()?;
        let mut index = self.store.read_index()?;
        index.set(name, &descriptor);
        self.store.write_index(&index)?;
        Ok(StoredImage {
            name: name.clone(),
            digest: descriptor.digest,
            image: Ok(image),
        })
    }

    fn copy(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        what: &str,
        progress: Option<&dyn Progress>,
    ) -> Result<(), StoreError> {
        let advanced = |bytes| {
            if let Some(progress) = progress {
                progress.advanced(bytes);
            }
        };
        if self.has(&descriptor.digest, descriptor.size) {
            advanced(descriptor.size);
            return Ok(());
        }
        let what = format!("{what} {}", descriptor.digest);
        let mut content = source.blob(descriptor, &what)?;
        let mut blob = self.blob(&descriptor.digest, descriptor.size)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = content
                .read(&mut buffer)
                .map_err(|error| source.read_error(&what, error))?;
            if count == 0 {
                return blob.commit();
            }
            blob.write_all(&buffer[..count])
                .map_err(io_error("write", &blob.path))?;
            advanced(count as u64);
        }
    }
}

impl BlobWriter<'_> {
    /// Bytes written so far: where a transfer that was cut goes on.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Forgets what was written.
    ///
    /// # Errors
    /// Where the file system does not let it.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let mut file = self.file();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .map_err(io_error("write", &self.path))?;
        self.written = 0;
        self.hasher = Hasher::new(self.digest.algorithm());
        Ok(())
    }

    /// Makes it a blob of the store, which it is after a crash of the host as well.
    ///
    /// # Errors
    /// Where size or digest are others than stated, or the disk is full or broken.
    pub fn commit(self) -> Result<(), StoreError> {
        if self.written != self.size {
            return Err(StoreError::Content(ContentError::Size {
                digest: self.digest.clone(),
                expected: self.size,
                found: self.written,
            }));
        }
        let found = self.hasher.clone().finish();
        if found != self.digest {
            return Err(StoreError::Content(ContentError::Digest {
                expected: self.digest.clone(),
                found,
            }));
        }
        self.file()
            .sync_all()
            .map_err(io_error("write out", &self.path))?;
        let target = self.store.blob_path(&self.digest);
        let directory = target.parent().unwrap_or(&self.store.images);
        own_directory::make(directory)?;
        {
            // Nobody takes it for a damaged one of this name.
            let _lock = self.store.locks.index()?;
            fs::rename(&self.path, &target).map_err(io_error("make", &target))?;
        }
        self.store.sync_directory(directory)
    }

    fn file(&self) -> &File {
        self.file.file()
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.written.saturating_add(bytes.len() as u64);
        // A sender that goes on for ever must not fill the disk.
        if after > self.size {
            return Err(io::Error::from(ContentError::Size {
                digest: self.digest.clone(),
                expected: self.size,
                found: after,
            }));
        }
        let count = self.file().write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "a half-written blob cannot be removed");
        }
    }
}
