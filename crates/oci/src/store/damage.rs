// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blobs that are no longer what they were: told, and taken away, so that they can come anew.

use std::fs::File;
use std::io;

use rustix::io::Errno;
use tracing::warn;

use super::Store;
use super::error::{StoreError, io_error};
use super::files::remove_file;
use super::lock::is_at;
use crate::digest::{Digest, Verified};

impl Store {
    /// Removes a blob that is not what its digest says.
    pub(super) fn remove_damaged(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(io_error("read", &path))?;
        // That may take long, and needs no lock: what is read here is the file that was opened, whatever has its name.
        if !is_damaged(&file, digest).map_err(io_error("read", &path))? {
            return Ok(());
        }
        self.remove_if_there(digest, &file)
    }

    /// Removes a blob if it is this file.
    fn remove_if_there(&self, digest: &Digest, file: &File) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        // Blobs come with this lock: another that came meanwhile is not taken for the damaged one.
        let _lock = self.locks.index()?;
        if is_at(&path, file) {
            warn!(%digest, "a blob of the image store is damaged, and is removed");
            remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Whether a file is not what `digest` says, or cannot be read from its disk.
pub(super) fn is_damaged(file: &File, digest: &Digest) -> io::Result<bool> {
    let size = file.metadata()?.len();
    let mut content = Verified::new(file, digest.clone(), size);
    match io::copy(&mut content, &mut io::sink()) {
        Ok(_) => Ok(false),
        Err(error)
            if error.kind() == io::ErrorKind::InvalidData
                || error.raw_os_error() == Some(Errno::IO.raw_os_error()) =>
        {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;
    use std::{fs, thread};

    use super::*;
    use crate::digest::Algorithm;

    /// A store with a blob of this content, and the digest of what it should be.
    fn store_with(content: &str) -> (tempfile::TempDir, Store, Digest) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"whole");
        let path = store.blob_path(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        (directory, store, digest)
    }

    #[test]
    fn damaged_blob_is_removed() {
        let (_directory, store, digest) = store_with("torn");

        store.remove_damaged(&digest).unwrap();

        assert!(!store.blob_path(&digest).exists());
    }

    #[test]
    fn blob_is_read_without_keeping_others_from_the_store() {
        let (_directory, store, digest) = store_with("whole");
        let lock = store.locks.index().unwrap();
        let (done, looked) = mpsc::channel();
        let other = store.clone();
        let thread = thread::spawn(move || done.send(other.remove_damaged(&digest).is_ok()));

        let outcome = looked.recv_timeout(Duration::from_secs(5));

        drop(lock);
        thread.join().unwrap().unwrap();
        assert_eq!(outcome, Ok(true));
    }

    #[test]
    fn blob_that_came_meanwhile_is_not_taken_for_the_damaged_one() {
        let (directory, store, digest) = store_with("torn");
        let torn = File::open(store.blob_path(&digest)).unwrap();
        let new = directory.path().join("new");
        fs::write(&new, "whole").unwrap();
        fs::rename(new, store.blob_path(&digest)).unwrap();

        store.remove_if_there(&digest, &torn).unwrap();

        assert_eq!(fs::read(store.blob_path(&digest)).unwrap(), b"whole");
    }
}
