// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a place to all that is below it, without following a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::Dir;

use super::entry::{Attributes, Entry, Kind};
use super::guest_only::GuestOnly;
use crate::log;
use crate::printable::printable;

/// The most directories in each other: each takes descriptors, and a guest can nest them without end.
const LEVELS: usize = 400;

/// What takes what is found, a directory before what is in it.
pub trait Receiver {
    /// A directory, which what comes from now on is in.
    fn enter(&mut self, name: &OsStr, attributes: &Attributes) -> Result<()>;
    /// Nothing more is in that directory.
    fn leave(&mut self) -> Result<()>;
    /// A regular file, of which no more is to be read than its size.
    fn file(&mut self, name: &OsStr, attributes: &Attributes, content: &File) -> Result<()>;
    /// A symbolic link.
    fn link(&mut self, name: &OsStr, attributes: &Attributes, target: &OsStr) -> Result<()>;
    /// Whether what is called so cannot be put where it would go now: nobody but a guest could read it there.
    fn is_out_of_reach(&self, _name: &OsStr, _kind: Kind) -> Result<bool> {
        Ok(false)
    }
    /// The directory that it all goes to, if there is one.
    fn identity(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Hands over what `entry` is under the name `name`; of a directory without a name, what is in it.
///
/// What is removed meanwhile is not there; what is neither file, directory nor link is left out, and said so, as is what
/// is in a place that is not in reach, or would come there.
pub fn walk(
    entry: &Entry,
    name: Option<&OsStr>,
    guest_only: Option<&GuestOnly>,
    receiver: &mut dyn Receiver,
) -> Result<()> {
    let mut walk = Walk {
        receiver,
        guest_only,
        levels: Vec::new(),
        path: PathBuf::new(),
    };
    walk.take(entry, name)?;
    while let Some((directory, is_named)) = walk.levels.last_mut() {
        let is_named = *is_named;
        match next(directory).with_context(|| format!("cannot list {}", shown(&walk.path)))? {
            Some(name) => {
                let found = directory
                    .fd()
                    .map_err(Into::into)
                    .and_then(|directory| Entry::at(directory, &name))
                    .with_context(|| format!("cannot look at {}", shown(&walk.path.join(&name))))?;
                if let Some(entry) = found {
                    walk.take(&entry, Some(&name))?;
                }
            }
            None => {
                walk.levels.pop();
                if is_named {
                    let what = || format!("cannot copy {}", shown(&walk.path));
                    walk.receiver.leave().with_context(what)?;
                    walk.path.pop();
                }
            }
        }
    }
    Ok(())
}

struct Walk<'r> {
    receiver: &'r mut dyn Receiver,
    guest_only: Option<&'r GuestOnly>,
    /// Directories that are being listed, each with whether it was handed over itself.
    levels: Vec<(Dir, bool)>,
    path: PathBuf,
}

impl Walk<'_> {
    fn take(&mut self, entry: &Entry, name: Option<&OsStr>) -> Result<()> {
        let path = name.map_or_else(|| self.path.clone(), |name| self.path.join(name));
        let done = self.hand_over(entry, name, &path);
        done.with_context(|| format!("cannot copy {}", shown(&path)))
    }

    fn hand_over(&mut self, entry: &Entry, name: Option<&OsStr>, path: &Path) -> Result<()> {
        let attributes = &entry.attributes;
        if let Some(name) = name
            && self.receiver.is_out_of_reach(name, entry.kind)?
        {
            tell_left_out(path, "the guest alone has its place");
            return Ok(());
        }
        let is_cover = self.guest_only.is_some_and(|it| it.is_cover(entry));
        match (entry.kind, name) {
            (Kind::Directory, name) => {
                if is_cover {
                    log::tell(format_args!(
                        "coracle: what is in {} is left out: the guest alone has it",
                        shown(path)
                    ));
                }
                ensure!(
                    self.levels.len() < LEVELS,
                    "more than {LEVELS} directories are in each other"
                );
                ensure!(
                    self.receiver.identity() != Some(attributes.identity),
                    "a directory cannot be copied into itself"
                );
                let listed = entry.list()?;
                if let Some(name) = name {
                    self.receiver.enter(name, attributes)?;
                    path.clone_into(&mut self.path);
                }
                self.levels.push((listed, name.is_some()));
                Ok(())
            }
            _ if is_cover => {
                tell_left_out(path, "the guest alone has it");
                Ok(())
            }
            (Kind::File, Some(name)) => self.receiver.file(name, attributes, &entry.read()?),
            (Kind::Link, Some(name)) => self.receiver.link(name, attributes, &entry.target()?),
            (Kind::Special(kind), _) => {
                tell_left_out(path, &format!("it is {kind}"));
                Ok(())
            }
            (Kind::File | Kind::Link, None) => Ok(()),
        }
    }
}

fn next(directory: &mut Dir) -> rustix::io::Result<Option<OsString>> {
    loop {
        let Some(entry) = directory.read() else {
            return Ok(None);
        };
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            return Ok(Some(name.to_owned()));
        }
    }
}

/// Says that the copy goes on without it.
pub fn tell_left_out(path: &Path, reason: &str) {
    log::tell(format_args!(
        "coracle: {} is left out: {reason}",
        shown(path)
    ));
}

/// A path of a guest's, as it can be shown.
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).replace('\n', " ")
}
