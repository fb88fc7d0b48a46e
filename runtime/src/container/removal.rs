// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Removing a tree that a container filled, however deep it nested its directories.
//!
//! The usual way down a tree keeps a descriptor, or a frame of the stack, for each level: a
//! container could nest until whoever cleans up has none left. Here no directory is entered
//! below the second level: what is deeper is moved up, then removed in its turn.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Attempts at removing a directory that a dying process may still write to.
const ATTEMPTS: u32 = 100;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes a directory and all below it, without following symlinks; its absence is success.
///
/// # Errors
///
/// Those of the file system. Processes that still write to the tree are waited for, up to 5 s.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match remove_once(directory) {
            // Somebody made an entry behind our back, or holds a mount.
            Err(error) if [Errno::NOTEMPTY, Errno::BUSY, Errno::EXIST].contains(&errno(&error)) => {
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
    remove_once(directory)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn remove_once(directory: &Path) -> io::Result<()> {
    let top = match open(directory, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0u64;
    loop {
        let before = moved;
        for (name, kind) in entries(&top)? {
            if kind == FileType::Directory {
                empty(&top, &name, &mut moved)?;
            } else {
                unlinkat(&top, &name, AtFlags::empty())?;
            }
        }
        if moved == before {
            return fs::remove_dir(directory);
        }
    }
}

/// Removes the directory `name` of `top`; its own directories become `top`'s.
fn empty(top: &OwnedFd, name: &std::ffi::CStr, moved: &mut u64) -> io::Result<()> {
    let directory = openat(top, name, DIRECTORY, Mode::empty())?;
    for (child, kind) in entries(&directory)? {
        if kind == FileType::Directory {
            *moved += 1;
            renameat(
                &directory,
                &child,
                top,
                format!(".removed-{}-{moved}", std::process::id()),
            )?;
        } else {
            unlinkat(&directory, &child, AtFlags::empty())?;
        }
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory, with what they are names of.
fn entries(directory: impl AsFd) -> io::Result<Vec<(std::ffi::CString, FileType)>> {
    let directory = directory.as_fd();
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let metadata = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(metadata.st_mode)
            }
            kind => kind,
        };
        entries.push((name.to_owned(), kind));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn tree_is_removed_with_all_it_holds() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join("a/d")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::write(tree.join("file"), "x").unwrap();

        remove_tree(&tree).unwrap();

        assert!(!tree.exists());
    }

    #[test]
    fn symlinks_are_removed_and_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        let other = place.path().join("other");
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "x").unwrap();
        symlink(&other, tree.join("link")).unwrap();
        symlink(&other, tree.join("a/link")).unwrap();

        remove_tree(&tree).unwrap();

        assert!(!tree.exists());
        assert!(other.join("kept").exists());
    }

    #[test]
    fn link_is_no_tree() {
        let place = tempfile::tempdir().unwrap();
        let (other, link) = (place.path().join("other"), place.path().join("link"));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "x").unwrap();
        symlink(&other, &link).unwrap();

        let error = remove_tree(&link).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert!(other.join("kept").exists());
    }

    #[test]
    fn absent_tree_is_removed() {
        remove_tree(Path::new("/nonexistent/tree")).unwrap();
    }

    #[test]
    fn depth_costs_no_descriptors() {
        const DEPTH: usize = 25_000;
        // In memory: thousands of directories on a disk take a minute.
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        // Deeper than any limit of descriptors or of a path's length: made one level at a time.
        let mut level = open(&tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&level, "d", Mode::RWXU).unwrap();
            level = openat(&level, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(level);

        remove_tree(&tree).unwrap();

        assert!(!tree.exists());
    }
}
