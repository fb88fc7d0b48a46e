// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who may do what in the store.
//!
//! ```text
//! locks/index        exclusive: changes the index, or which blobs there are
//! locks/blobs        shared: reads blobs, or adds some that nothing refers to yet; exclusive: removes blobs
//! locks/<chain id>   shared: uses the tree; exclusive: makes or removes it
//! tmp/<blob>         exclusive: writes it
//! ```
//!
//! Locks are `flock`s: the kernel takes them back from whoever dies. The file of a lock may be removed by who holds it
//! exclusively, so that a lock counts only while its name still leads to it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::{StoreError, io_error};
use crate::digest::Digest;

/// How long to wait for another process, which may be unpacking a large image.
pub(super) const LOCK_DEADLINE: Duration = Duration::from_secs(600);
/// Pause between two looks at a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// A shared lock: what it is on stays as long as any copy of its descriptor is open, in this process or in others that
/// it was given to.
#[derive(Debug)]
pub struct Lease(File);

impl Lease {
    /// A second one, to be given to somebody else.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Lease> for std::os::fd::OwnedFd {
    fn from(lease: Lease) -> Self {
        lease.0.into()
    }
}

/// An exclusive lock.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// The file that is locked.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Lets others share it; it may be lost to another process meanwhile, so what it was on has to be looked at again.
    /// `None` where that one has removed it.
    pub(super) fn share(self) -> Result<Option<Lease>, StoreError> {
        take(&self.path, &self.file, Kind::Shared)?;
        Ok(is_at(&self.path, &self.file).then_some(Lease(self.file)))
    }

    /// Removes the file of the lock, which nobody needs any more.
    pub(super) fn remove(self) {
        // Left behind, it is in nobody's way.
        let _ = fs::remove_file(&self.path);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Shared,
    Exclusive,
}

/// The store's locks.
#[derive(Clone, Debug)]
pub(super) struct Locks {
    directory: PathBuf,
}

impl Locks {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn index(&self) -> Result<Lock, StoreError> {
        self.exclusive("index")
    }

    pub(super) fn share_blobs(&self) -> Result<Lease, StoreError> {
        self.shared("blobs")
    }

    /// The right to remove blobs; `None` while others use some.
    pub(super) fn try_blobs(&self) -> Result<Option<Lock>, StoreError> {
        try_exclusive(&self.directory.join("blobs"))
    }

    pub(super) fn share_tree(&self, chain_id: &Digest) -> Result<Lease, StoreError> {
        self.shared(chain_id.hex())
    }

    /// As [`Locks::share_tree`]; `None` while somebody makes or removes it.
    pub(super) fn try_share_tree(&self, chain_id: &Digest) -> Result<Option<Lease>, StoreError> {
        let path = self.directory.join(chain_id.hex());
        let file = open(&path)?;
        let is_taken = try_take(&path, &file, Kind::Shared)? && is_at(&path, &file);
        Ok(is_taken.then_some(Lease(file)))
    }

    /// The right to make or remove a tree; `None` while others use it.
    pub(super) fn try_tree(&self, chain_id: &str) -> Result<Option<Lock>, StoreError> {
        try_exclusive(&self.directory.join(chain_id))
    }

    fn shared(&self, name: &str) -> Result<Lease, StoreError> {
        let path = self.directory.join(name);
        held(&path, Kind::Shared).map(Lease)
    }

    fn exclusive(&self, name: &str) -> Result<Lock, StoreError> {
        let path = self.directory.join(name);
        let file = held(&path, Kind::Exclusive)?;
        Ok(Lock { file, path })
    }
}

/// Takes the lock at `path` if nobody else has it.
pub(super) fn try_exclusive(path: &Path) -> Result<Option<Lock>, StoreError> {
    let file = open(path)?;
    if !try_take(path, &file, Kind::Exclusive)? || !is_at(path, &file) {
        return Ok(None);
    }
    Ok(Some(Lock {
        file,
        path: path.to_owned(),
    }))
}

/// Pauses between two tries of what `deadline` bounds; an error when that has come.
pub(super) fn pause(path: &Path, deadline: Instant) -> Result<(), StoreError> {
    if Instant::now() >= deadline {
        return Err(StoreError::Locked {
            path: path.to_owned(),
        });
    }
    thread::sleep(LOCK_PAUSE);
    Ok(())
}

/// The file of the lock at `path`, locked.
fn held(path: &Path, kind: Kind) -> Result<File, StoreError> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        let file = open(path)?;
        take(path, &file, kind)?;
        if is_at(path, &file) {
            return Ok(file);
        }
        pause(path, deadline)?;
    }
}

/// Locks, waiting for others.
fn take(path: &Path, file: &File, kind: Kind) -> Result<(), StoreError> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    while !try_take(path, file, kind)? {
        pause(path, deadline)?;
    }
    Ok(())
}

fn try_take(path: &Path, file: &File, kind: Kind) -> Result<bool, StoreError> {
    let operation = match kind {
        Kind::Shared => FlockOperation::NonBlockingLockShared,
        Kind::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(io_error("lock", path)(error.into())),
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open", path))
}

/// Whether the name still leads to the file.
pub(super) fn is_at(path: &Path, file: &File) -> bool {
    let of_file = file.metadata();
    let of_path = fs::symlink_metadata(path);
    matches!((of_file, of_path), (Ok(left), Ok(right)) if (left.dev(), left.ino()) == (right.dev(), right.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_that_was_lost_and_removed_is_not_shared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tree");
        let lock = try_exclusive(&path).unwrap().unwrap();
        // What somebody does who gets it while it is changed from the one kind to the other.
        fs::remove_file(&path).unwrap();
        let _of_another = try_exclusive(&path).unwrap().unwrap();

        let lease = lock.share().unwrap();

        assert!(lease.is_none());
    }

    #[test]
    fn shared_lock_keeps_others_from_removing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tree");
        let lock = try_exclusive(&path).unwrap().unwrap();

        let lease = lock.share().unwrap();

        assert!(lease.is_some());
        assert!(try_exclusive(&path).unwrap().is_none());
    }
}
