// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where paths are looked up: the host, or a container's root, out of which nothing leads.
//!
//! The guest may rename and relink at any time. Each path in the container is therefore resolved by the kernel, as a
//! process would whose `/` the container's root is, and gives a descriptor of what was found; nothing is looked up twice.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::entry::{Entry, Kind};

/// How often a lookup is tried again that a rename elsewhere disturbs.
const ATTEMPTS: u32 = 1000;
/// The most links on the way to a place, as the kernel has it.
const LINKS: u32 = 40;
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What paths are relative to.
pub enum Root {
    /// This process's own root and directory.
    Host,
    /// A container's root.
    Container(OwnedFd),
}

impl Root {
    /// What is at `path`, opened as a place alone, which does nothing to it; nothing if there is none. The link that the
    /// path may end with is followed if asked to.
    pub fn find(&self, path: &Path, follow: bool) -> io::Result<Option<Entry>> {
        let flags = match follow {
            true => OFlags::PATH,
            false => OFlags::PATH | OFlags::NOFOLLOW,
        };
        match self.open(path, flags) {
            Ok(place) => Entry::of(place).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What there is of `path`: what is at it, or the nearest above, where a link that leads to nothing counts as that
    /// to which it leads.
    pub fn nearest(&self, path: &Path) -> io::Result<Option<Entry>> {
        let mut path = path.to_owned();
        'links: for _ in 0..LINKS {
            for above in path.ancestors() {
                if let Some(entry) = there(self.find(above, true))? {
                    return Ok(Some(entry));
                }
                if let Some(link) = there(self.find(above, false))?
                    && link.kind == Kind::Link
                    && let Some(parent) = above.parent()
                    && let Ok(rest) = path.strip_prefix(above)
                {
                    path = parent.join(link.target()?).join(rest);
                    continue 'links;
                }
            }
            break;
        }
        Ok(None)
    }

    /// The directory at `path`.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.open(path, OFlags::PATH | OFlags::DIRECTORY)?)
    }

    /// The directory at `path`, made with those above it where there is none.
    pub fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut missing = Vec::new();
        let mut above = path;
        let mut found = loop {
            match self.directory(above) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => break found?,
            }
            let (Some(name), Some(parent)) = (above.file_name(), above.parent()) else {
                return Err(Errno::NOENT.into());
            };
            missing.push(name);
            above = parent;
        };
        while let Some(name) = missing.pop() {
            match mkdirat(&found, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            // Just made: no link is meant.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            found = openat(&found, name, flags, Mode::empty())?;
        }
        Ok(found)
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let Self::Container(root) = self else {
            return openat(CWD, path, flags, Mode::empty());
        };
        let mut attempt = 1;
        loop {
            match openat2(root, path, flags, Mode::empty(), IN_ROOT) {
                Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS => {
                    attempt += 1;
                    thread::yield_now();
                }
                outcome => return outcome,
            }
        }
    }
}

/// Below a file there is nothing, and nothing at the end of links that lead to each other.
fn there(found: io::Result<Option<Entry>>) -> io::Result<Option<Entry>> {
    match found {
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOTDIR | Errno::LOOP) => Ok(None),
            _ => Err(error),
        },
        found => found,
    }
}
