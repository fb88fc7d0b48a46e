// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One digest over a whole directory tree, to show that it has not changed.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, openat, readlinkat,
    statat,
};
use rustix::io::Errno;

use crate::digest::{Algorithm, Digest, Hasher};

/// Deepest tree that is walked, one descriptor a level.
const DEPTH_LIMIT: usize = 512;

/// The digest of the tree at `root`: names, types, modes, owners, sizes, modification times, link
/// counts, device numbers, symlink targets, extended attributes and contents. Not access times,
/// which reading changes, nor inode numbers, so that copies are equal.
///
/// # Errors
/// Where something in it cannot be read.
pub fn tree_hash(root: impl AsRef<Path>) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, root.as_ref(), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    node(&mut hasher, &stat);
    xattrs(&mut hasher, directory.as_fd(), b".")?;
    children(&mut hasher, &directory, 0)?;
    Ok(hasher.finish())
}

fn children(hasher: &mut Hasher, directory: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the tree is too deep",
        ));
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    number(hasher, names.len() as u64);
    for name in names {
        let name = name.as_bytes();
        bytes(hasher, name);
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        node(hasher, &stat);
        xattrs(hasher, directory.as_fd(), name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                content(hasher, openat(directory, name, flags, Mode::empty())?)?
            }
            FileType::Symlink => bytes(hasher, readlinkat(directory, name, Vec::new())?.as_bytes()),
            FileType::Directory => {
                let child = openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                children(hasher, &child, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn node(hasher: &mut Hasher, stat: &Stat) {
    number(hasher, u64::from(stat.st_mode));
    number(hasher, u64::from(stat.st_uid));
    number(hasher, u64::from(stat.st_gid));
    number(hasher, stat.st_nlink);
    number(hasher, stat.st_rdev);
    hasher.update(&stat.st_mtime.to_le_bytes());
    number(hasher, stat.st_mtime_nsec);
    // A directory's size is its file system's affair.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        hasher.update(&stat.st_size.to_le_bytes());
    }
}

/// Attributes by the name's path through the directory's descriptor, since symlinks and device
/// nodes have some but cannot be opened.
fn xattrs(hasher: &mut Hasher, directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let path = [
        format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(),
        name,
    ]
    .concat();
    let mut list = vec![0; 64 << 10];
    let length = match llistxattr(path.as_slice(), list.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        outcome => outcome?,
    };
    let mut names: Vec<&[u8]> = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    number(hasher, names.len() as u64);
    let mut value = vec![0; 64 << 10];
    for name in names {
        let length = lgetxattr(path.as_slice(), name, value.as_mut_slice())?;
        bytes(hasher, name);
        bytes(hasher, &value[..length]);
    }
    Ok(())
}

fn content(hasher: &mut Hasher, file: OwnedFd) -> io::Result<()> {
    let mut file = std::fs::File::from(file);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// With its length before it: no two lists of fields hash alike.
fn bytes(hasher: &mut Hasher, bytes: &[u8]) {
    number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

fn number(hasher: &mut Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use rstest::rstest;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("d")).unwrap();
        fs::write(tree.path().join("d/f"), "content").unwrap();
        symlink("f", tree.path().join("d/s")).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for path in ["d/f", "d", "."] {
            File::open(tree.path().join(path))
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
        tree
    }

    #[test]
    fn reading_changes_nothing() {
        let tree = tree();

        let before = tree_hash(tree.path()).unwrap();
        fs::read(tree.path().join("d/f")).unwrap();

        assert_eq!(tree_hash(tree.path()).unwrap(), before);
    }

    #[rstest]
    #[case::content(|path: &Path| fs::write(path.join("d/f"), "contenT"))]
    #[case::new_file(|path: &Path| fs::write(path.join("d/g"), ""))]
    #[case::removed_file(|path: &Path| fs::remove_file(path.join("d/f")))]
    #[case::mode(|path: &Path| fs::set_permissions(path.join("d/f"), fs::Permissions::from_mode(0o4755)))]
    #[case::time(|path: &Path| File::open(path.join("d"))?.set_modified(SystemTime::now()))]
    #[case::symlink(|path: &Path| fs::remove_file(path.join("d/s")).and_then(|()| symlink("g", path.join("d/s"))))]
    #[case::hard_link(|path: &Path| fs::hard_link(path.join("d/f"), path.join("g")))]
    #[case::mode_of_the_root(|path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o711)))]
    fn change_is_seen(#[case] change: fn(&Path) -> io::Result<()>) {
        let tree = tree();
        let before = tree_hash(tree.path()).unwrap();

        change(tree.path()).unwrap();

        assert_ne!(tree_hash(tree.path()).unwrap(), before);
    }
}
