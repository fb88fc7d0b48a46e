// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a path to a directory of the tree.
//!
//! Directories on the way may be symlinks, as in a container: they lead inside the tree, absolute
//! ones from its root, `..` no higher than that. The common case, no symlink at all, is one
//! `openat2`; otherwise each component is looked at here and the outcome, which has no symlink
//! left, is opened the same way. Whatever this module computes, the kernel keeps it in the tree.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, readlinkat, statat};
use rustix::io::Errno;

use super::Refusal;
use super::path::TreePath;
use super::tree::Fault;
use crate::beneath::open;

/// Most symlinks on the way; the kernel stops there too.
const SYMLINK_LIMIT: usize = 40;

/// No symlink, no way up, no other file system.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory of the tree, opened, with its path free of symlinks.
#[derive(Clone)]
pub(super) struct Directory {
    pub(super) fd: Rc<OwnedFd>,
    pub(super) path: TreePath,
}

/// Opens a directory by its path free of symlinks, with `flags`.
pub(super) fn open_exact(
    root: BorrowedFd<'_>,
    path: &TreePath,
    flags: OFlags,
) -> std::io::Result<OwnedFd> {
    open(root, path.as_argument(), flags | OFlags::DIRECTORY, STRICT)
}

/// Finds the directory `path`; `None` where it does not exist and is not to be made.
///
/// Directories that are `made` on the way are told by their paths.
pub(super) fn resolve(
    root: BorrowedFd<'_>,
    path: &TreePath,
    mut made: Option<&mut dyn FnMut(&TreePath)>,
) -> Result<Option<Directory>, Fault> {
    if let Ok(fd) = open_exact(root, path, OFlags::PATH) {
        return Ok(Some(Directory {
            fd: Rc::new(fd),
            path: path.clone(),
        }));
    }
    let mut pending: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    let mut symlinks = 0;
    let mut here = TreePath::default();
    let mut fd = open_here(root, &here)?;
    while let Some(component) = pending.pop_front() {
        match component.as_slice() {
            b"" | b"." => continue,
            b".." => here.pop(),
            name => match look_up(fd.as_fd(), name)? {
                None => match &mut made {
                    None => return Ok(None),
                    Some(made) => {
                        here.push(name)?;
                        here.check_depth()?;
                        mkdirat(&fd, name, Mode::RWXU)
                            .map_err(|error| Fault::io("make a directory above", error))?;
                        made(&here);
                    }
                },
                Some(FileType::Directory) => here.push(name)?,
                Some(FileType::Symlink) => {
                    symlinks += 1;
                    if symlinks > SYMLINK_LIMIT {
                        return Err(Refusal::Symlinks(SYMLINK_LIMIT).into());
                    }
                    let target = readlinkat(&fd, name, Vec::new())
                        .map_err(|error| Fault::io("read a symlink above", error))?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        here = TreePath::default();
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        pending.push_front(part.to_vec());
                    }
                }
                Some(_) => {
                    return Err(Refusal::NotADirectory(here.join(name)?.as_bytes().to_vec()).into());
                }
            },
        }
        fd = open_here(root, &here)?;
    }
    here.check_depth()?;
    Ok(Some(Directory {
        fd: Rc::new(fd),
        path: here,
    }))
}

/// What `name` is in `directory`, symlinks not followed.
pub(super) fn look_up(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Fault> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(Fault::io("look up", error)),
    }
}

fn open_here(root: BorrowedFd<'_>, path: &TreePath) -> Result<OwnedFd, Fault> {
    open_exact(root, path, OFlags::PATH).map_err(|error| Fault::Io("open a directory above", error))
}
