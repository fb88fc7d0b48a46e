// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blobs that are no longer what they were: told, and taken away, so that they can come anew.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use tracing::warn;

use super::Store;
use super::error::{StoreError, io_error};
use super::files::remove_file;
use crate::digest::{Digest, Verified};

impl Store {
    /// Removes a blob that is not what its digest says.
    pub(super) fn remove_damaged(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        // Blobs come with this lock: another that came meanwhile is not taken for the damaged one.
        let _lock = self.locks.index()?;
        if is_damaged(&path, digest).map_err(io_error("read", &path))? {
            warn!(%digest, "a blob of the image store is damaged, and is removed");
            remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Whether the file at `path` is not what `digest` says, or cannot be read from its disk.
pub(super) fn is_damaged(path: &Path, digest: &Digest) -> io::Result<bool> {
    let file = File::open(path)?;
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
