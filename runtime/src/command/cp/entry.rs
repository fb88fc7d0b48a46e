// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is at a place, held by a descriptor: it stays the same whatever becomes of its name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat};
use rustix::io::Errno;

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    /// A device, a FIFO or a socket: what it is called.
    Special(&'static str),
}

/// What is kept of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with those of set-user-ID and the like.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
    /// Device and inode.
    pub identity: (u64, u64),
}

/// What is at a place; it is opened for nothing yet.
pub struct Entry {
    place: OwnedFd,
    pub kind: Kind,
    pub attributes: Attributes,
}

impl Entry {
    /// What is called `name` in `directory`, not what a link of that name leads to; nothing if there is none.
    pub fn at(directory: impl AsFd, name: &OsStr) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(place) => Self::of(place).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What `place` is.
    pub fn of(place: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&place)?;
        Ok(Self {
            place,
            kind: kind(&stat),
            attributes: attributes(&stat),
        })
    }

    /// The place itself.
    pub fn place(&self) -> BorrowedFd<'_> {
        self.place.as_fd()
    }

    /// The place itself, as a directory to look up names in.
    pub fn into_place(self) -> OwnedFd {
        self.place
    }

    /// The file, for reading: this one, whatever has its name by now.
    pub fn read(&self) -> io::Result<File> {
        self.reopen(OFlags::RDONLY)
    }

    /// The file, for writing, empty.
    pub fn overwrite(&self) -> io::Result<File> {
        self.reopen(OFlags::WRONLY | OFlags::TRUNC)
    }

    fn reopen(&self, flags: OFlags) -> io::Result<File> {
        // To open a FIFO waits; to open a device can do anything.
        if self.kind != Kind::File {
            return Err(io::Error::other("it is not a regular file"));
        }
        let path = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        Ok(File::from(open(path, flags, Mode::empty())?))
    }

    /// The directory's names, read as they are asked for.
    pub fn list(&self) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir::new(openat(&self.place, ".", flags, Mode::empty())?)?)
    }

    /// Where the link leads.
    pub fn target(&self) -> io::Result<OsString> {
        let target = readlinkat(&self.place, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }
}

fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Link,
        FileType::Fifo => Kind::Special("a FIFO"),
        FileType::Socket => Kind::Special("a socket"),
        _ => Kind::Special("a device"),
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: (
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        identity: (stat.st_dev, stat.st_ino),
    }
}
