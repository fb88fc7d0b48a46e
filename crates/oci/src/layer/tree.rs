// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making, replacing and deleting in the tree that layers are applied to.
//!
//! Each act is on one name in one opened directory. The tree is private to the process until it
//! is whole, so that what was looked up stays so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use super::attributes::{self, Attributes, Ownership};
use super::path::TreePath;
use super::resolve::{Directory, look_up, open_exact, resolve};
use super::{LayerError, Refusal};
use crate::show::quoted;
use crate::tarball::{Kind, Time};

/// Most bytes of default ACLs, which are kept in memory until the tree is whole.
const DEFAULT_ACL_LIMIT: usize = 16 << 20;

/// Why an entry could not be applied.
#[derive(Debug)]
pub(super) enum Fault {
    Refused(Refusal),
    Io(&'static str, io::Error),
}

impl Fault {
    pub(super) fn io(action: &'static str, error: Errno) -> Self {
        Self::Io(action, error.into())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a directory gets once nothing is made in it any more.
struct Pending {
    mode: u32,
    mtime: Time,
    default_acl: Option<Vec<u8>>,
}

impl Pending {
    /// For directories that no entry described.
    const IMPLIED: Self = Self {
        mode: 0o755,
        mtime: Time {
            seconds: 0,
            nanoseconds: 0,
        },
        default_acl: None,
    };

    fn acl_size(&self) -> usize {
        self.default_acl.as_ref().map_or(0, Vec::len)
    }
}

/// The tree.
pub(super) struct Tree {
    root: OwnedFd,
    ownership: Ownership,
    /// All directories, by their paths free of symlinks.
    directories: BTreeMap<TreePath, Pending>,
    /// What the current layer made: its whiteouts leave that alone.
    made: BTreeSet<TreePath>,
    acl_bytes: usize,
    /// The directory of the last entry; most often that of the next one too.
    last: Option<(TreePath, Directory)>,
}

/// A name in a directory.
pub(super) struct Place<'n> {
    directory: Directory,
    name: &'n [u8],
    path: TreePath,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, ownership: Ownership) -> Self {
        Self {
            root,
            ownership,
            directories: BTreeMap::from([(TreePath::default(), Pending::IMPLIED)]),
            made: BTreeSet::new(),
            acl_bytes: 0,
            last: None,
        }
    }

    /// To be called before each layer.
    pub(super) fn start_layer(&mut self) {
        self.made.clear();
    }

    /// The place of an entry, its directory made where it is missing.
    pub(super) fn place<'n>(
        &mut self,
        directory: &TreePath,
        name: &'n [u8],
    ) -> Result<Place<'n>, Fault> {
        let directories = &mut self.directories;
        let directory = match &self.last {
            Some((path, found)) if path == directory => found.clone(),
            _ => {
                let mut made = |path: &TreePath| {
                    directories.insert(path.clone(), Pending::IMPLIED);
                };
                let found = resolve(self.root.as_fd(), directory, Some(&mut made))?
                    .ok_or(Fault::io("find the directory of", Errno::NOENT))?;
                self.last = Some((directory.clone(), found.clone()));
                found
            }
        };
        let path = directory.path.join(name)?;
        path.check_depth()?;
        Ok(Place {
            directory,
            name,
            path,
        })
    }

    /// Applies a directory entry for the root itself.
    pub(super) fn set_root(&mut self, attributes: Attributes) -> Result<(), Fault> {
        let fd = open_exact(self.root.as_fd(), &TreePath::default(), OFlags::RDONLY)
            .map_err(|error| Fault::Io("open", error))?;
        self.describe(TreePath::default(), fd.as_fd(), attributes)
    }

    /// Makes a directory; one that is there already keeps what is in it.
    pub(super) fn directory(
        &mut self,
        place: Place<'_>,
        attributes: Attributes,
    ) -> Result<(), Fault> {
        if look_up(place.directory.fd.as_fd(), place.name)? != Some(FileType::Directory) {
            self.remove(&place)?;
            mkdirat(&place.directory.fd, place.name, Mode::RWXU)
                .map_err(|error| Fault::io("make", error))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&place.directory.fd, place.name, flags, Mode::empty())
            .map_err(|error| Fault::io("open", error))?;
        self.made.insert(place.path.clone());
        self.describe(place.path, fd.as_fd(), attributes)
    }

    /// Makes an empty regular file, to be written and then finished with [`Tree::finish_file`].
    pub(super) fn file(&mut self, place: Place<'_>) -> Result<OwnedFd, Fault> {
        self.remove(&place)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(
            &place.directory.fd,
            place.name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|error| Fault::io("make", error))?;
        self.made.insert(place.path);
        Ok(file)
    }

    pub(super) fn finish_file(&self, file: &OwnedFd, attributes: &Attributes) -> Result<(), Fault> {
        attributes::set_on_file(file, attributes, self.ownership)
            .map_err(|error| Fault::Io("set the attributes of", error))
    }

    /// Makes a symlink. Where it leads is for those who follow it: nothing here does.
    pub(super) fn symlink(
        &mut self,
        place: Place<'_>,
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        if target.is_empty() || target.contains(&0) {
            return Err(Refusal::SymlinkTarget.into());
        }
        self.remove(&place)?;
        symlinkat(target, &place.directory.fd, place.name)
            .map_err(|error| Fault::io("make", error))?;
        self.finish_name(place, attributes)
    }

    /// Makes another name of `target`, whose attributes stay as its own entry set them.
    pub(super) fn hard_link(&mut self, place: Place<'_>, target: &[u8]) -> Result<(), Fault> {
        let refuse = |reason| Refusal::LinkTarget {
            target: target.to_vec(),
            reason: Box::new(reason),
        };
        let missing = || Refusal::LinkTargetMissing(target.to_vec());
        let path = TreePath::from_name(target).map_err(refuse)?;
        let (directory, name) = path
            .split()
            .ok_or_else(|| Refusal::LinkToDirectory(target.to_vec()))?;
        let directory = resolve(self.root.as_fd(), &directory, None)?.ok_or_else(missing)?;
        match look_up(directory.fd.as_fd(), name)? {
            None => return Err(missing().into()),
            Some(FileType::Directory) => {
                return Err(Refusal::LinkToDirectory(target.to_vec()).into());
            }
            Some(_) => {}
        }
        let same = directory.path.join(name)? == place.path;
        if !same {
            self.remove(&place)?;
            // What was in the way may have held the target.
            linkat(
                &directory.fd,
                name,
                &place.directory.fd,
                place.name,
                AtFlags::empty(),
            )
            .map_err(|error| match error {
                Errno::NOENT => missing().into(),
                _ => Fault::io("make", error),
            })?;
        }
        self.made.insert(place.path);
        Ok(())
    }

    /// Makes a FIFO or a device node.
    pub(super) fn node(
        &mut self,
        place: Place<'_>,
        kind: &Kind,
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        let (file_type, device) = match kind {
            Kind::CharacterDevice(major, minor) => {
                (FileType::CharacterDevice, makedev(*major, *minor))
            }
            Kind::BlockDevice(major, minor) => (FileType::BlockDevice, makedev(*major, *minor)),
            _ => (FileType::Fifo, 0),
        };
        if file_type != FileType::Fifo && self.ownership == Ownership::Caller {
            return Err(Refusal::Device.into());
        }
        self.remove(&place)?;
        let mode = Mode::from_raw_mode(attributes.mode);
        mknodat(&place.directory.fd, place.name, file_type, mode, device)
            .map_err(|error| Fault::io("make", error))?;
        let (fd, name) = (place.directory.fd.clone(), place.name);
        self.finish_name(place, attributes)?;
        // Again, since the process's umask and the change of owner take bits away. The name is no
        // symlink: it was just made.
        rustix::fs::chmodat(&fd, name, mode, AtFlags::empty())
            .map_err(|error| Fault::io("set the mode of", error))
    }

    /// Deletes `name` in `directory`, as far as the current layer did not make it.
    pub(super) fn hide(&mut self, directory: &TreePath, name: &[u8]) -> Result<(), Fault> {
        let Some(directory) = self.existing(directory)? else {
            return Ok(());
        };
        self.last = None;
        let path = directory.path.join(name)?;
        self.prune(directory.fd.as_fd(), name, &path)
    }

    /// Deletes all in `directory`, as far as the current layer did not make it.
    pub(super) fn hide_all(&mut self, directory: &TreePath) -> Result<(), Fault> {
        let Some(directory) = self.existing(directory)? else {
            return Ok(());
        };
        self.last = None;
        self.prune_children(directory.fd.as_fd(), &directory.path)
    }

    /// Gives all directories their modes and times, children first.
    pub(super) fn finish(self) -> Result<(), LayerError> {
        for (path, pending) in self.directories.iter().rev() {
            open_exact(self.root.as_fd(), path, OFlags::RDONLY)
                .and_then(|fd| {
                    let acl = pending.default_acl.as_deref();
                    attributes::set_on_finished_directory(
                        fd.as_fd(),
                        pending.mode,
                        acl,
                        pending.mtime,
                    )
                })
                .map_err(|source| LayerError::Finish {
                    directory: quoted(path.as_argument()),
                    source,
                })?;
        }
        Ok(())
    }

    /// The directory of a whiteout. Where it does not exist, there is nothing to hide; nor where the
    /// layer has just put something else in its place, as builders do who compare trees.
    fn existing(&self, directory: &TreePath) -> Result<Option<Directory>, Fault> {
        match resolve(self.root.as_fd(), directory, None) {
            Err(Fault::Refused(Refusal::NotADirectory(_))) => Ok(None),
            outcome => outcome,
        }
    }

    fn describe(
        &mut self,
        path: TreePath,
        directory: BorrowedFd<'_>,
        attributes: Attributes,
    ) -> Result<(), Fault> {
        attributes::set_on_open_directory(directory, &attributes, self.ownership)
            .map_err(|error| Fault::Io("set the attributes of", error))?;
        let Attributes {
            mode,
            mtime,
            default_acl,
            ..
        } = attributes;
        let pending = Pending {
            mode,
            mtime,
            default_acl,
        };
        self.acl_bytes = self.acl_bytes.saturating_add(pending.acl_size());
        if self.acl_bytes > DEFAULT_ACL_LIMIT {
            return Err(Refusal::DefaultAcl(DEFAULT_ACL_LIMIT).into());
        }
        if let Some(before) = self.directories.insert(path, pending) {
            self.acl_bytes = self.acl_bytes.saturating_sub(before.acl_size());
        }
        Ok(())
    }

    fn finish_name(&mut self, place: Place<'_>, attributes: &Attributes) -> Result<(), Fault> {
        attributes::set_on_name(
            place.directory.fd.as_fd(),
            place.name,
            attributes,
            self.ownership,
        )
        .map_err(|error| Fault::Io("set the attributes of", error))?;
        self.made.insert(place.path);
        Ok(())
    }

    /// Removes whatever is at a place, to make room.
    fn remove(&mut self, place: &Place<'_>) -> Result<(), Fault> {
        let Some(kind) = look_up(place.directory.fd.as_fd(), place.name)? else {
            return Ok(());
        };
        // The path to the last directory may have led through what goes now.
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.last = None;
        }
        remove_all(place.directory.fd.as_fd(), place.name)
            .map_err(|error| Fault::io("replace", error))?;
        self.forget(&place.path);
        Ok(())
    }

    /// Drops what is remembered of a path and all below it.
    fn forget(&mut self, path: &TreePath) {
        let below: Vec<TreePath> = self
            .directories
            .range(path.below())
            .map(|(path, _)| path.clone())
            .collect();
        for path in below.iter().chain([path]) {
            if let Some(pending) = self.directories.remove(path) {
                self.acl_bytes = self.acl_bytes.saturating_sub(pending.acl_size());
            }
        }
        let below: Vec<TreePath> = self.made.range(path.below()).cloned().collect();
        for path in below.iter().chain([path]) {
            self.made.remove(path);
        }
    }

    fn prune(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &TreePath,
    ) -> Result<(), Fault> {
        let Some(kind) = look_up(directory, name)? else {
            return Ok(());
        };
        let is_new = self.made.contains(path);
        let holds_new = self.made.range(path.below()).next().is_some();
        if !is_new && !holds_new {
            remove_all(directory, name)
                .map_err(|error| Fault::io("delete what is hidden by", error))?;
            self.forget(path);
        } else if kind == FileType::Directory {
            let fd = open_exact(self.root.as_fd(), path, OFlags::RDONLY)
                .map_err(|error| Fault::Io("open what is hidden by", error))?;
            self.prune_children(fd.as_fd(), path)?;
        }
        Ok(())
    }

    fn prune_children(&mut self, directory: BorrowedFd<'_>, path: &TreePath) -> Result<(), Fault> {
        for name in names(directory).map_err(|error| Fault::io("list what is hidden by", error))? {
            self.prune(directory, &name, &path.join(&name)?)?;
        }
        Ok(())
    }
}

/// Removes a name, and all below it if it is a directory. The depth of the tree bounds the
/// recursion.
fn remove_all(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        outcome => return outcome,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(directory, name, flags, Mode::empty())?;
    for child in names(fd.as_fd())? {
        remove_all(fd.as_fd(), &child)?;
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}

fn names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    // Opened anew: descriptors for paths alone cannot be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::new(openat(directory, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
