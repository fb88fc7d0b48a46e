// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Removing a tree that a container filled, however deep it nested its directories.
//!
//! The usual way down a tree keeps a descriptor, or a frame of the stack, for each level: a
//! container could nest until whoever cleans up has none left. Here no directory is entered
//! below the second level: what is deeper is moved up, then removed in its turn.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, open, openat, renameat, statat, unlinkat,
};
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
    let Some(top) = unless_gone(open(directory, DIRECTORY, Mode::empty()))? else {
        return Ok(());
    };
    let mut moved = 0u64;
    loop {
        let before = moved;
        for_each_entry(&top, |name, kind| match kind {
            FileType::Directory => empty(&top, name, &mut moved),
            _ => unless_gone(unlinkat(&top, name, AtFlags::empty())).map(drop),
        })?;
        if moved == before {
            return unless_gone(unlinkat(CWD, directory, AtFlags::REMOVEDIR)).map(drop);
        }
    }
}

/// Removes the directory `name` of `top`; its own directories become `top`'s.
fn empty(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    let Some(directory) = unless_gone(openat(top, name, DIRECTORY, Mode::empty()))? else {
        return Ok(());
    };
    for_each_entry(&directory, |child, kind| {
        let removed = if kind == FileType::Directory {
            *moved += 1;
            let name = format!(".removed-{}-{moved}", std::process::id());
            renameat(&directory, child, top, name)
        } else {
            unlinkat(&directory, child, AtFlags::empty())
        };
        unless_gone(removed).map(drop)
    })?;
    unless_gone(unlinkat(top, name, AtFlags::REMOVEDIR)).map(drop)
}

/// Does the same with each entry of a directory as it is read: its names may be more than there is memory for. What is
/// added meanwhile may be passed over.
fn for_each_entry(
    directory: &OwnedFd,
    mut act: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    let Some(entries) = unless_gone(Dir::read_from(directory))? else {
        return Ok(());
    };
    for entry in entries {
        let Some(entry) = unless_gone(entry)? else {
            return Ok(());
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                match unless_gone(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))? {
                    Some(metadata) => FileType::from_raw_mode(metadata.st_mode),
                    None => continue,
                }
            }
            kind => kind,
        };
        act(name, kind)?;
    }
    Ok(())
}

/// Whatever is not there any more, somebody else has removed.
fn unless_gone<T>(outcome: Result<T, Errno>) -> io::Result<Option<T>> {
    match outcome {
        Err(Errno::NOENT) => Ok(None),
        outcome => Ok(Some(outcome?)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use rustix::process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, waitpid};

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

    #[test]
    fn two_may_remove_the_same_tree() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = place.path().join("tree");
        for directory in 0..50 {
            let directory = tree.join(format!("{directory}/d"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..100 {
                fs::write(directory.join(file.to_string()), "").unwrap();
            }
        }

        let removed = thread::scope(|scope| {
            let removing = [(); 4].map(|()| scope.spawn(|| remove_tree(&tree)));
            removing.map(|removing| removing.join().unwrap())
        });

        assert!(removed.iter().all(Result::is_ok), "{removed:?}");
        assert!(!tree.exists());
    }

    #[test]
    fn names_of_a_full_directory_are_not_held_all_at_once() {
        const FILES: usize = 100_000;
        // Their names would be 25 MB.
        const MORE: u64 = 8 << 20;
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("full")).unwrap();
        for file in 0..FILES {
            File::create(tree.join(format!("full/{file:0250}"))).unwrap();
        }

        // SAFETY: the child does nothing that another thread of this process could have left in the middle: glibc sees
        // to its own locks. It ends without what is registered for this process's end.
        let child = match unsafe { libc::fork() } {
            0 => {
                let status = fs::read_to_string("/proc/self/status").unwrap();
                let data = status.lines().find_map(|line| line.strip_prefix("VmData:"));
                let data = data.and_then(|data| data.split_whitespace().next());
                let data: u64 = data.unwrap().parse().unwrap();
                let limit = Rlimit {
                    current: Some(data * 1024 + MORE),
                    maximum: None,
                };
                setrlimit(Resource::Data, limit).unwrap();
                let removed = remove_tree(&tree);
                // SAFETY: as above.
                unsafe { libc::_exit(i32::from(removed.is_err())) }
            }
            child => Pid::from_raw(child).unwrap(),
        };

        let ended = waitpid(Some(child), WaitOptions::empty()).unwrap();
        assert_eq!(ended.unwrap().1.exit_status(), Some(0));
        assert!(!tree.exists());
    }
}
