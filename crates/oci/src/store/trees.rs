// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unpacked images, by what they hold.
//!
//! ```text
//! trees/sha256/<chain id>/rootfs    the tree
//!                         boot      the boot of the host in which it was made
//!                         durable   there once all of it has reached the disk
//! ```
//!
//! To wait for the disk would take longer than to unpack. A tree is therefore used before it is written out: as long
//! as the host runs, what was written is what is read. After a crash of the host, a tree that is not known to have
//! reached the disk is one of another boot, and made anew.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use tracing::{info, warn};

use super::error::{StoreError, io_error};
use super::files::{remove_tree, replace};
use super::lock::{LOCK_DEADLINE, pause};
use super::{Lease, Store};
use crate::digest::Digest;
use crate::image::{Image, Source};
use crate::layer::Options;
use crate::own_directory;
use crate::unpack::{Progress, UnpackError, unpack};

const ROOTFS: &str = "rootfs";
const BOOT: &str = "boot";
const DURABLE: &str = "durable";

/// An unpacked image. Its tree is to be read alone.
#[derive(Debug)]
pub struct Rootfs {
    /// Path of the tree.
    pub path: PathBuf,
    /// The name of its content.
    pub chain_id: Digest,
    /// Whether it was there already.
    pub cached: bool,
    /// Keeps it there.
    pub lease: Lease,
}

impl Rootfs {
    /// Waits until the tree has reached the disk, so that it is there after a crash of the host as well. Takes as long as
    /// the disk does, and serves the next boot alone: [`Store::sweep`] does the same, later.
    ///
    /// # Errors
    /// Where the disk is full or broken.
    pub fn write_out(&self) -> Result<(), StoreError> {
        match self.path.parent() {
            Some(directory) => write_out(directory),
            None => Ok(()),
        }
    }
}

impl Store {
    /// The tree of `image`, unpacked from `source` if it is not there.
    ///
    /// Processes that ask for the same image at once unpack it once.
    ///
    /// # Errors
    /// Where the image cannot be unpacked; nothing of it is left behind then.
    pub fn unpacked(
        &self,
        source: &Source,
        image: &Image,
        options: Options,
        progress: Option<&dyn Progress>,
    ) -> Result<Rootfs, StoreError> {
        let chain_id = image.chain_id();
        let directory = self.tree(&chain_id);
        let found = |lease, cached| Rootfs {
            path: directory.join(ROOTFS),
            chain_id: chain_id.clone(),
            cached,
            lease,
        };
        let deadline = Instant::now() + LOCK_DEADLINE;
        let mut cached = true;
        loop {
            let lease = self.locks.share_tree(&chain_id)?;
            if is_good(&directory)? {
                return Ok(found(lease, cached));
            }
            drop(lease);
            if let Some(lock) = self.locks.try_tree(chain_id.hex())? {
                if !is_good(&directory)? {
                    let started = Instant::now();
                    self.make(&chain_id, source, image, options, progress)?;
                    cached = false;
                    info!(%chain_id, elapsed = ?started.elapsed(), "image unpacked");
                }
                // Somebody may have removed it before it was shared.
                if let Some(lease) = lock.share()?
                    && is_good(&directory)?
                {
                    return Ok(found(lease, cached));
                }
            }
            pause(&directory, deadline)?;
        }
    }

    /// A lease on a tree that [`Store::unpacked`] gave before, by its path; nothing if it is none of this store's.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] if it has not outlived a crash of the host, or is being made or removed.
    pub fn lease(&self, rootfs: &Path) -> Result<Option<Lease>, StoreError> {
        let found = self.trees().find(|(path, _)| path.join(ROOTFS) == rootfs);
        let Some((directory, chain_id)) = found else {
            return Ok(None);
        };
        match self.locks.try_share_tree(&chain_id)? {
            Some(lease) if is_good(&directory)? => Ok(Some(lease)),
            _ => Err(StoreError::NotWhole(rootfs.to_owned())),
        }
    }

    /// Makes a tree; the caller has its lock.
    fn make(
        &self,
        chain_id: &Digest,
        source: &Source,
        image: &Image,
        options: Options,
        progress: Option<&dyn Progress>,
    ) -> Result<(), StoreError> {
        let target = self.tree(chain_id);
        // What is there is not good: of another boot.
        self.discard(&target, chain_id.hex())?;
        let temporary = Temporary::make(self.temporaries().join(chain_id.hex()))?;
        let root = temporary.path.join(ROOTFS);
        // What a root has that no layer names, whatever the umask: everyone in the container may enter it.
        DirBuilder::new()
            .create(&root)
            .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)))
            .map_err(io_error("make", &root))?;
        let opened = File::open(&root).map_err(io_error("open", &root))?;
        if let Err(error) = unpack(source, image, opened.into(), options, progress) {
            self.note_damage(source, &error);
            return Err(error.into());
        }
        let boot = temporary.path.join(BOOT);
        fs::write(&boot, boot_id()).map_err(io_error("write", &boot))?;
        own_directory::make(target.parent().unwrap_or(&self.images))?;
        temporary.rename(&target)?;
        if boot_id().is_empty() {
            // It could not be told whether the tree is of this boot.
            write_out(&target)?;
        }
        Ok(())
    }

    /// Takes away a damaged blob of the store's own, so that it is missing, and can come anew.
    fn note_damage(&self, source: &Source, error: &UnpackError) {
        if let UnpackError::Damaged { layer, .. } = error
            && source.path() == self.images
            && let Ok(digest) = layer.parse()
            && let Err(error) = self.remove_damaged(&digest)
        {
            warn!(%digest, %error, "a damaged blob cannot be removed");
        }
    }

    pub(super) fn tree(&self, chain_id: &Digest) -> PathBuf {
        self.images
            .join("trees")
            .join(chain_id.algorithm().name())
            .join(chain_id.hex())
    }

    /// Removes a tree, by way of a temporary name, so that nobody finds half of it; the caller has its lock.
    pub(super) fn discard(&self, tree: &Path, chain_id: &str) -> Result<(), StoreError> {
        let temporary = self.temporaries().join(chain_id);
        remove_tree(&temporary).map_err(io_error("remove", &temporary))?;
        match fs::rename(tree, &temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome
                .map_err(io_error("remove", tree))
                .and_then(|()| remove_tree(&temporary).map_err(io_error("remove", &temporary))),
        }
    }

    /// All trees: their directories and chain ids.
    pub(super) fn trees(&self) -> impl Iterator<Item = (PathBuf, Digest)> {
        let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        below(self.images.join("trees")).flat_map(move |algorithm| {
            let name = algorithm.file_name();
            below(algorithm.path()).filter_map(move |tree| {
                let hex = tree.file_name();
                let text = format!("{}:{}", name.to_str()?, hex.to_str()?);
                Some((tree.path(), text.parse().ok()?))
            })
        })
    }

    /// Removes temporary trees whose makers are gone. What cannot be removed is tried again before the same image is
    /// unpacked, and reported then.
    pub(super) fn remove_stale_trees(&self) {
        for entry in fs::read_dir(self.temporaries())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let Some(name) = name.to_str().filter(|_| is_directory) else {
                continue;
            };
            if let Ok(Some(_lock)) = self.locks.try_tree(name)
                && let Err(error) = remove_tree(&entry.path())
            {
                warn!(path = %entry.path().display(), %error, "a stale temporary tree cannot be removed");
            }
        }
    }

    /// Writes out trees that are not known to have reached the disk.
    pub(super) fn write_out_trees(&self) {
        for (path, chain_id) in self.trees() {
            let is_open = !path.join(DURABLE).exists();
            if is_open
                && let Ok(Some(_lease)) = self.locks.try_share_tree(&chain_id)
                && is_good(&path).unwrap_or(false)
                && let Err(error) = write_out(&path)
            {
                warn!(path = %path.display(), %error, "an unpacked image cannot be written out");
            }
        }
    }
}

/// Whether a tree is there, and whole.
fn is_good(directory: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(directory.join(ROOTFS)) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_error("look up", directory)(error)),
    }
    if directory.join(DURABLE).exists() {
        return Ok(true);
    }
    let of_tree = fs::read_to_string(directory.join(BOOT)).unwrap_or_default();
    Ok(!of_tree.is_empty() && of_tree == boot_id())
}

fn write_out(directory: &Path) -> Result<(), StoreError> {
    let mark = directory.join(DURABLE);
    if mark.exists() {
        return Ok(());
    }
    File::open(directory)
        .and_then(|opened| Ok(syncfs(&opened)?))
        .and_then(|()| replace(&mark, &directory.join("durable.new"), b""))
        .map_err(io_error("write out", directory))
}

/// What tells one boot of the host from another; nothing where that is not known.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// A tree in the making, removed unless it is renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Makes the directory; one that is there is a dead process's, since the caller has the lock.
    fn make(path: PathBuf) -> Result<Self, StoreError> {
        remove_tree(&path).map_err(io_error("remove", &path))?;
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error("make", &path))?;
        Ok(Self { path })
    }

    fn rename(self, target: &Path) -> Result<(), StoreError> {
        // Not over anything: a tree that is there may be in use.
        renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE)
            .map_err(|error| io_error("make", target)(error.into()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            warn!(path = %self.path.display(), %error, "a temporary tree cannot be removed");
        }
    }
}
