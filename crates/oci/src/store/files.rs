// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and trees of the store: written whole, removed whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Removes a tree, whose symlinks are not followed; its absence is success.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(path))
}

/// Removes a file; its absence is success.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(path))
}

/// Replaces the file at `path`: it holds either what it held, or `content`. What room a file at `temporary` has is used.
pub(super) fn replace(path: &Path, temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = open_temporary(temporary)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Takes the room on the disk that a later [`replace`] of `length` bytes needs: it succeeds then whatever has filled the
/// disk.
pub(super) fn reserve(temporary: &Path, length: usize) -> io::Result<()> {
    // Not by fallocate(2): where blocks are not written yet, the first write may need others still.
    open_temporary(temporary)?.write_all(&vec![b' '; length])
}

/// Not truncated: on a full disk others would take what that sets free.
fn open_temporary(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
