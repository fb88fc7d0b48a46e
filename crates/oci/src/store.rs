// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cache of unpacked images.
//!
//! ```text
//! <root>/images/sha256/<chain id>/rootfs   a tree, whole since it has this name, never changed
//! <root>/images/tmp/<chain id>/            a tree in the making
//! <root>/images/locks/<chain id>           locked by who makes or removes it
//! ```
//!
//! A tree is made under a temporary name and renamed, after what it holds has reached the disk:
//! whatever dies, a tree is there whole or not at all. What a dead process leaves is removed by
//! the next that opens the store, known by its lock being free.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, syncfs};
use rustix::io::Errno;
use thiserror::Error;
use tracing::{info, warn};

use crate::digest::Digest;
use crate::image::{Image, Source};
use crate::layer::Options;
use crate::own_directory::{self, OwnDirectoryError};
use crate::unpack::{UnpackError, unpack};

/// How long to wait for another process that unpacks the same image.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);
/// Pause between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A failure of the cache, or of what was to be put in it.
#[derive(Debug, Error)]
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
    /// Another process has been unpacking the image for too long.
    #[error("image store: another process holds {} and has not finished in {} seconds", .path.display(), LOCK_DEADLINE.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The image cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// The cache, in a directory that only its owner may enter: it holds set-user-ID programs of
/// images, which users of the host must not reach.
#[derive(Clone, Debug)]
pub struct Store {
    images: PathBuf,
}

/// An unpacked image. Its tree is to be read alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Path of the tree.
    pub path: PathBuf,
    /// The name of its content.
    pub chain_id: Digest,
    /// Whether it was there already.
    pub cached: bool,
}

impl Store {
    /// Opens the cache below `root`, made where it is missing, and removes what dead processes
    /// left in it.
    ///
    /// # Errors
    /// Where a directory cannot be made, or others than this user may write to it.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let store = Self {
            images: root.as_ref().join("images"),
        };
        for directory in [store.images.clone(), store.temporaries(), store.locks()] {
            own_directory::make(&directory)?;
        }
        store.remove_stale();
        Ok(store)
    }

    /// Removes what dead processes left half unpacked in the cache below `root`, which need not exist.
    pub fn sweep(root: impl AsRef<Path>) {
        let store = Self {
            images: root.as_ref().join("images"),
        };
        store.remove_stale();
    }

    /// The tree of `image`, unpacked from `source` if it is not cached.
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
    ) -> Result<Rootfs, StoreError> {
        let chain_id = image.chain_id();
        let target = self
            .images
            .join(chain_id.algorithm().name())
            .join(chain_id.hex());
        let rootfs = |cached| Rootfs {
            path: target.join("rootfs"),
            chain_id: chain_id.clone(),
            cached,
        };
        if is_directory(&rootfs(true).path)? {
            return Ok(rootfs(true));
        }
        let _lock = self.lock(&chain_id)?;
        if is_directory(&rootfs(true).path)? {
            return Ok(rootfs(true));
        }
        let started = Instant::now();
        self.unpack_to(&target, source, image, &chain_id, options)?;
        info!(%chain_id, elapsed = ?started.elapsed(), "image unpacked");
        Ok(rootfs(false))
    }

    fn unpack_to(
        &self,
        target: &Path,
        source: &Source,
        image: &Image,
        chain_id: &Digest,
        options: Options,
    ) -> Result<(), StoreError> {
        let temporary = Temporary::make(self.temporaries().join(chain_id.hex()))?;
        let root = temporary.path.join("rootfs");
        // What a root has that no layer names, whatever the umask: everyone in the container may enter it.
        DirBuilder::new()
            .create(&root)
            .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)))
            .map_err(io_error("make", &root))?;
        let opened = File::open(&root).map_err(io_error("open", &root))?;
        let handle = opened.try_clone().map_err(io_error("open", &root))?;
        unpack(source, image, handle.into(), options)?;
        // Without this, a crash of the host could leave the new name with files cut short.
        syncfs(&opened).map_err(|error| io_error("write out", &root)(error.into()))?;
        let parent = target.parent().unwrap_or(&self.images);
        own_directory::make(parent)?;
        temporary.rename(target)?;
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(io_error("write out", parent))
    }

    fn temporaries(&self) -> PathBuf {
        self.images.join("tmp")
    }

    fn locks(&self) -> PathBuf {
        self.images.join("locks")
    }

    fn lock(&self, chain_id: &Digest) -> Result<File, StoreError> {
        let path = self.locks().join(chain_id.hex());
        let file = open_lock(&path).map_err(io_error("open", &path))?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    thread::sleep(LOCK_PAUSE)
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(StoreError::Locked { path }),
                Err(error) => return Err(io_error("lock", &path)(error.into())),
            }
        }
    }

    /// Removes temporary trees whose makers are gone. What cannot be removed is in nobody's way:
    /// it is tried again before the same image is unpacked, and reported then.
    fn remove_stale(&self) {
        let Ok(entries) = fs::read_dir(self.temporaries()) else {
            return;
        };
        for entry in entries.flatten() {
            let lock = open_lock(&self.locks().join(entry.file_name()));
            let is_free =
                |lock: &File| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if lock.as_ref().is_ok_and(is_free)
                && let Err(error) = remove_tree(&entry.path())
            {
                warn!(path = %entry.path().display(), %error, "a stale temporary tree cannot be removed");
            }
        }
    }
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

/// Removes a tree, whose symlinks are not followed; its absence is success.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn is_directory(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("look up", path)(error)),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
