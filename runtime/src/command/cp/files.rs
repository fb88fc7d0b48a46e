// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing below a directory, of which somebody else may at any time make something else.
//!
//! Every name is looked up in its directory's descriptor, and no link is followed: whoever puts one where a file is to
//! be, or was, has it replaced, or the copy fails.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod,
    fchown, fstat, futimens, mkdirat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::entry::{Attributes, Entry, Kind};
use super::guest_only::GuestOnly;
use super::walk::Receiver;

/// How often a name is freed that somebody takes again.
const ATTEMPTS: u32 = 8;
/// Permission bits without set-user-ID and set-group-ID: of a file that is given to another, they would be that one's.
const PLAIN: u32 = 0o1777;

/// Whose the copies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This process's user's.
    Ours,
    /// Whose the originals are.
    Kept,
}

/// A directory that is filled.
pub struct Files<'g> {
    base: OwnedFd,
    identity: (u64, u64),
    levels: Vec<Level>,
    ownership: Ownership,
    /// What of it is not to be filled.
    guest_only: Option<&'g GuestOnly>,
}

/// A directory below it.
struct Level {
    directory: OwnedFd,
    /// What it gets once it is filled; nothing if it was there before.
    attributes: Option<Attributes>,
}

impl<'g> Files<'g> {
    pub fn below(
        base: OwnedFd,
        ownership: Ownership,
        guest_only: Option<&'g GuestOnly>,
    ) -> io::Result<Self> {
        let stat = fstat(&base)?;
        Ok(Self {
            base,
            identity: (stat.st_dev, stat.st_ino),
            levels: Vec::new(),
            ownership,
            guest_only,
        })
    }

    fn here(&self) -> BorrowedFd<'_> {
        let base = self.base.as_fd();
        self.levels
            .last()
            .map_or(base, |level| level.directory.as_fd())
    }
}

impl Receiver for Files<'_> {
    fn enter(&mut self, name: &OsStr, attributes: &Attributes) -> Result<()> {
        let (directory, is_new) = make_directory(self.here(), name)?;
        self.levels.push(Level {
            directory,
            attributes: is_new.then_some(*attributes),
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        match level.attributes {
            Some(attributes) => self.ownership.apply(&level.directory, &attributes),
            None => Ok(()),
        }
    }

    fn file(&mut self, name: &OsStr, attributes: &Attributes, content: &File) -> Result<()> {
        let file = create(self.here(), name)?;
        copy(content, &file, attributes.size)?;
        self.ownership.apply(&file, attributes)
    }

    fn link(&mut self, name: &OsStr, attributes: &Attributes, target: &OsStr) -> Result<()> {
        let link = put_link(self.here(), name, target)?;
        self.ownership.apply_to_link(link, attributes)
    }

    fn is_out_of_reach(&self, name: &OsStr, kind: Kind) -> Result<bool> {
        match self.guest_only {
            Some(guest_only) => Ok(guest_only.takes(self.here(), name, kind)?),
            None => Ok(false),
        }
    }

    fn identity(&self) -> Option<(u64, u64)> {
        Some(self.identity)
    }
}

impl Ownership {
    /// Whose a copy is.
    pub fn owner(self, attributes: &Attributes) -> (Uid, Gid) {
        match self {
            Self::Ours => (rustix::process::geteuid(), rustix::process::getegid()),
            Self::Kept => (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid)),
        }
    }

    /// What may be done with a copy.
    pub fn mode(self, attributes: &Attributes) -> u32 {
        match self {
            Self::Ours => attributes.mode & PLAIN,
            Self::Kept => attributes.mode,
        }
    }

    /// Gives a file or directory what is kept of the original.
    pub fn apply(self, file: impl AsFd, attributes: &Attributes) -> Result<()> {
        let what = "cannot set owner, permissions and time";
        let (uid, gid) = self.owner(attributes);
        fchown(&file, Some(uid), Some(gid)).context(what)?;
        // After the owner: a change of that takes bits away.
        fchmod(&file, Mode::from_raw_mode(self.mode(attributes))).context(what)?;
        futimens(&file, &times(attributes)).context(what)
    }

    /// Gives a link what is kept of the original. It is the one that was made, whatever has its name by now.
    pub fn apply_to_link(self, link: impl AsFd, attributes: &Attributes) -> Result<()> {
        let what = "cannot set owner and time";
        let (uid, gid) = self.owner(attributes);
        let itself = AtFlags::EMPTY_PATH;
        chownat(&link, "", Some(uid), Some(gid), itself).context(what)?;
        utimensat(&link, "", &times(attributes), itself).context(what)
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    let (tv_sec, tv_nsec) = attributes.modified;
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec { tv_sec, tv_nsec },
    }
}

/// The directory `name`, made if there is none; says whether it was.
pub fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(OwnedFd, bool)> {
    let is_new = match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => Ok((directory, is_new)),
        Err(Errno::NOTDIR | Errno::LOOP) => bail!("something that is not a directory has its name"),
        Err(error) => Err(error.into()),
    }
}

/// A new, empty file `name`, in the place of what is there; a file that something is mounted on is emptied.
pub fn create(parent: BorrowedFd<'_>, name: &OsStr) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS {
        match openat(parent, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok(File::from(file)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Something is mounted on it; whether that can be written to is another question than whether its name can.
            Err(Errno::BUSY | Errno::ROFS) => {
                let there = Entry::at(parent, name)?.context("it has gone")?;
                return there.overwrite().context("it cannot be overwritten");
            }
            Err(Errno::ISDIR) => bail!("a directory has its name"),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("its name is taken again and again")
}

/// The link `name`, in the place of what is there.
pub fn put_link(parent: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        match symlinkat(target, parent, name) {
            Ok(()) => return made_link(parent, name),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => bail!("a directory has its name"),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("its name is taken again and again")
}

/// The link that was just made under this name. Somebody else may have put something in its place, which must not become
/// the guest's: another file of ours would do, under a second name.
fn made_link(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat(parent, name, flags, Mode::empty())?;
    let stat = fstat(&link)?;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    ensure!(
        is_link && stat.st_nlink == 1,
        "somebody has put something else in its place"
    );
    Ok(link)
}

/// Copies `size` bytes, or what there is of them; holes stay holes.
pub fn copy(mut from: &File, mut to: &File, size: u64) -> Result<()> {
    // First: what cannot be so long is told before anything is written.
    to.set_len(size)?;
    let mut position = 0;
    while position < size {
        let begin = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(position)) {
            Ok(begin) => begin,
            // Nothing but a hole comes.
            Err(Errno::NXIO) => break,
            // A file system that does not tell.
            Err(_) => position,
        };
        if begin >= size {
            break;
        }
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(begin)).unwrap_or(size);
        from.seek(SeekFrom::Start(begin))?;
        to.seek(SeekFrom::Start(begin))?;
        let wanted = end.min(size).saturating_sub(begin);
        let copied = io::copy(&mut from.take(wanted), &mut to)?;
        // It has become shorter.
        if copied == 0 {
            break;
        }
        position = begin + copied;
    }
    let length = from.metadata()?.len().min(size);
    Ok(to.set_len(length)?)
}
