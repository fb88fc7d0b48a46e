// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What of a container's files only its guest has: its kernel's file systems, those in its memory, and its disks. At the
//! place of each the host has a directory or file that the guest does not see. It is covered with an empty one that
//! nobody can write to: no copy takes it for the guest's, by whatever path it comes there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, fstat, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use super::entry::{Entry, Kind};
use super::place::Direction;
use super::root::Root;

/// What places are covered with: a directory with an empty file system in memory, a file with what cannot be copied.
#[derive(Default)]
pub struct Covers {
    file_systems: Vec<OwnedFd>,
    /// Of those.
    devices: Vec<u64>,
    places: Vec<Place>,
}

/// A place that is the guest's alone.
struct Place {
    path: PathBuf,
    is_disk: bool,
    /// Device and inode of its cover.
    identity: (u64, u64),
}

impl Covers {
    /// Covers `place`, which the container sees as `path`, where its guest has mounted a disk or something of its own.
    pub fn put(&mut self, place: &Entry, path: &Path, is_disk: bool) -> Result<()> {
        let identity = self
            .cover(place)
            .with_context(|| format!("cannot mount at {}", path.display()))?;
        self.places.push(Place {
            path: path.to_owned(),
            is_disk,
            identity,
        });
        Ok(())
    }

    fn cover(&mut self, place: &Entry) -> io::Result<(u64, u64)> {
        let cover = match place.kind {
            Kind::Directory => {
                let file_system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
                fsconfig_set_string(&file_system, "mode", "755")?;
                fsconfig_create(&file_system)?;
                let attributes =
                    MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                let cover = fsmount(&file_system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
                self.devices.push(fstat(&cover)?.st_dev);
                self.file_systems.push(file_system);
                cover
            }
            _ => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                open_tree(CWD, "/dev/null", flags)?
            }
        };
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&cover, "", place.place(), "", flags)?;
        Ok(Entry::of(cover)?.attributes.identity)
    }

    /// What is at `path`, for a volume to be mounted there: if nothing is and it is below a cover, it is made.
    pub fn point(&self, root: &Root, path: &Path, is_directory: bool) -> io::Result<Option<Entry>> {
        if let Some(found) = root.find(path, true)? {
            return Ok(Some(found));
        }
        let mut above = path.ancestors().skip(1);
        let above = above.find_map(|path| root.find(path, true).ok().flatten());
        let (Some(above), Some(parent), Some(name)) = (above, path.parent(), path.file_name())
        else {
            return Ok(None);
        };
        if !self.devices.contains(&above.attributes.identity.0) {
            return Ok(None);
        }
        let parent = root.make_directory(parent)?;
        make(&parent, name, is_directory)?;
        root.find(path, true)
    }

    /// Has nothing be written to them any more. `name` is the container's, which `runs` or has ended.
    pub fn seal(self, name: &str, runs: bool) -> Result<GuestOnly> {
        for file_system in &self.file_systems {
            fsconfig_set_flag(file_system, "ro")
                .and_then(|()| fsconfig_reconfigure(file_system))
                .context("cannot keep what is the guest's alone from being written to")?;
        }
        Ok(GuestOnly {
            container: name.to_owned(),
            runs,
            devices: self.devices,
            places: self.places,
        })
    }
}

/// An empty directory or file.
fn make(parent: &OwnedFd, name: &OsStr, is_directory: bool) -> io::Result<()> {
    let made = match is_directory {
        true => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        false => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
        }
    };
    Ok(made?)
}

/// The places of a container that are its guest's alone.
pub struct GuestOnly {
    container: String,
    runs: bool,
    devices: Vec<u64>,
    places: Vec<Place>,
}

impl GuestOnly {
    /// Whether this is what one of them is covered with.
    pub fn is_cover(&self, entry: &Entry) -> bool {
        let identity = entry.attributes.identity;
        self.places.iter().any(|place| place.identity == identity)
    }

    /// Whether what would be put at `name` in `directory` would be put on one of them. A directory that is there is none
    /// for a directory: a volume may be below.
    pub fn takes(&self, directory: impl AsFd, name: &OsStr, kind: Kind) -> io::Result<bool> {
        let directory = directory.as_fd();
        Ok(match Entry::at(directory, name)? {
            Some(there) => self.takes_there(&there, kind),
            None => self.of_device(fstat(directory)?.st_dev).is_some(),
        })
    }

    /// The same of a path, of which as much is there as may be.
    pub fn takes_path(&self, root: &Root, path: &Path, kind: Kind) -> io::Result<bool> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(false);
        };
        match root.directory(above) {
            Ok(directory) => self.takes(directory, name, kind),
            Err(_) => {
                let nearest = root.nearest(above)?;
                Ok(nearest.is_some_and(|nearest| self.place(&nearest).is_some()))
            }
        }
    }

    fn takes_there(&self, there: &Entry, kind: Kind) -> bool {
        let are_directories = there.kind == Kind::Directory && kind == Kind::Directory;
        !are_directories && self.place(there).is_some()
    }

    /// That which is covered by this, or by what this was made on.
    fn place(&self, entry: &Entry) -> Option<&Place> {
        let identity = entry.attributes.identity;
        let mut places = self.places.iter();
        let itself = places.find(|place| place.identity == identity);
        itself.or_else(|| self.of_device(identity.0))
    }

    fn of_device(&self, device: u64) -> Option<&Place> {
        let place = || self.places.iter().find(|place| place.identity.0 == device);
        self.devices.contains(&device).then(place).flatten()
    }

    /// Refuses a copy of `path`, or to it, if `entry`, which is there or above, is one of them.
    pub fn refuse(&self, entry: &Entry, path: &Path, direction: Direction) -> Result<()> {
        let Some(place) = self.place(entry) else {
            return Ok(());
        };
        let (container, shown) = (&self.container, path.display());
        let what = match place.is_disk {
            true => "is a disk",
            false => "is its kernel's or in its memory",
        };
        let instead = match (self.runs, direction) {
            (true, Direction::Out) => format!("try: coracle exec {container} cat {shown}"),
            (true, Direction::In) => {
                format!("try: coracle exec -i {container} sh -c 'cat >FILE' <FILE")
            }
            (false, _) if place.is_disk => {
                "mount the disk here, or have another container mount it".to_owned()
            }
            (false, _) => "nothing is left of it, since the container has ended".to_owned(),
        };
        bail!(
            "{shown} of container {container} is out of reach: {} {what}, which the guest alone has ({instead})",
            place.path.display()
        )
    }
}
