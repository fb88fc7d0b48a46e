// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle cp`.
//!
//! ```text
//! place, landing   what is meant, and under which name it lands: pure
//! tree, root       the container's files, and looking up paths in them
//! entry, walk      what is at a place, and all that is below it
//! guest_only       what of a container's files is out of reach
//! files, archive   writing it into a directory, or as a tar archive
//! ```
//!
//! The guest is an enemy here: it renames and relinks while its files are read and written, to have the host's read or
//! written instead. What is found once is held by a descriptor, and no name is trusted twice.

mod archive;
mod entry;
mod files;
mod guest_only;
mod landing;
mod place;
mod root;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufWriter, IsTerminal};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};

use self::archive::{Archive, extract};
use self::entry::{Entry, Kind};
use self::files::{Files, Ownership};
use self::guest_only::GuestOnly;
use self::landing::{Landing, There, landing};
use self::place::{Copy, Direction, GivenPath};
use self::root::Root;
use self::tree::Tree;
use self::walk::walk;
use super::reach::containers;
use crate::cli::{CpArguments, Directories};

/// Copies files and directories out of a container, or into it.
pub fn cp(directories: &Directories, arguments: &CpArguments) -> Result<u8> {
    let copy = Copy::parse(&arguments.source, &arguments.destination)?;
    let mut found = containers(directories).find(&copy.container)?;
    let ownership = match arguments.archive {
        true => Ownership::Kept,
        false => Ownership::Ours,
    };
    let (inside, outside) = (&copy.inside.path, copy.outside.as_ref());
    match copy.direction {
        // The host's side is opened first: afterwards its paths lead elsewhere.
        Direction::Out => {
            let destination = outside.map(|given| Destination::find(&Root::Host, given));
            let destination = destination.transpose()?;
            ensure!(
                destination.is_some() || !io::stdout().is_terminal(),
                "standard output is a terminal, which an archive is nothing for"
            );
            let tree = Tree::open(&directories.root, &mut found, copy.direction)?;
            tree.require_in_reach(inside, copy.inside.is_directory, copy.direction)?;
            let mut source = Source::find(tree.root()?, &copy.inside)?;
            source.guest_only = Some(tree.guest_only());
            match destination {
                Some(destination) => transfer(&source, destination, ownership)?,
                None => send(&source, ownership)?,
            }
        }
        Direction::In => {
            let source = outside.map(|given| Source::find(&Root::Host, given));
            let source = source.transpose()?;
            let tree = Tree::open(&directories.root, &mut found, copy.direction)?;
            tree.require_in_reach(inside, true, copy.direction)?;
            let mut destination = Destination::find(tree.root()?, &copy.inside)?;
            destination.guest_only = Some(tree.guest_only());
            match source {
                Some(source) => transfer(&source, destination, ownership)?,
                None => receive(tree.root()?, &destination, ownership)?,
            }
        }
    }
    Ok(0)
}

/// What is to be copied.
struct Source<'g> {
    given: &'g GivenPath,
    entry: Entry,
    /// What of its root is not to be copied.
    guest_only: Option<&'g GuestOnly>,
}

impl<'g> Source<'g> {
    fn find(root: &Root, given: &'g GivenPath) -> Result<Self> {
        let shown = given.path.display();
        // A link is copied as one, unless a directory is meant.
        let entry = root
            .find(&given.path, given.is_directory)
            .with_context(|| format!("cannot look at {shown}"))?
            .with_context(|| format!("there is no {shown}"))?;
        ensure!(
            entry.kind == Kind::Directory || !given.is_directory,
            "{shown} is not a directory"
        );
        // In a directory it would only be left out.
        if let Kind::Special(kind) = entry.kind {
            bail!("{shown} is {kind}, which is not copied");
        }
        Ok(Self {
            given,
            entry,
            guest_only: None,
        })
    }

    fn is_directory(&self) -> bool {
        self.entry.kind == Kind::Directory
    }

    fn name(&self) -> Option<&OsStr> {
        self.given.entry.as_ref().map(|(_, name)| name.as_os_str())
    }
}

/// Where it is copied to.
struct Destination<'g> {
    given: &'g GivenPath,
    there: Option<Entry>,
    /// The directory above, and the name in it; not of a directory that is there.
    above: Option<(OwnedFd, OsString)>,
    /// What of its root is not to be copied to.
    guest_only: Option<&'g GuestOnly>,
}

impl<'g> Destination<'g> {
    fn find(root: &Root, given: &'g GivenPath) -> Result<Self> {
        let there = root
            .find(&given.path, true)
            .with_context(|| format!("cannot look at {}", given.path.display()))?;
        let is_directory = matches!(&there, Some(entry) if entry.kind == Kind::Directory);
        let above = match &given.entry {
            Some((directory, name)) if !is_directory => {
                let opened = root
                    .directory(directory)
                    .with_context(|| format!("there is no directory {}", directory.display()))?;
                Some((opened, name.clone()))
            }
            _ => None,
        };
        Ok(Self {
            given,
            there,
            above,
            guest_only: None,
        })
    }

    fn there(&self) -> There {
        match &self.there {
            None => There::Nothing,
            Some(entry) if entry.kind == Kind::Directory => There::Directory,
            Some(_) => There::Other,
        }
    }

    fn into_directory(self) -> Result<OwnedFd> {
        let shown = self.given.path.display();
        let directory = self.there.map(Entry::into_place);
        directory.with_context(|| format!("there is no directory {shown}"))
    }
}

fn transfer(source: &Source<'_>, destination: Destination<'_>, ownership: Ownership) -> Result<()> {
    let (given, guest_only) = (destination.given, destination.guest_only);
    let landing = landing(
        source.given,
        source.is_directory(),
        given,
        destination.there(),
    )?;
    let (directory, name) = match landing {
        Landing::Content => (destination.into_directory()?, None),
        Landing::Below(name) => {
            let path = given.path.join(&name);
            let directory = destination.into_directory()?;
            if let Some(guest_only) = guest_only
                && let Some(there) = Entry::at(&directory, &name)?
            {
                guest_only.refuse(&there, &path, Direction::In)?;
            }
            (directory, Some(name))
        }
        Landing::At => match (destination.there, destination.above) {
            // What is there is written to, by whatever link it was named: it may be what something is mounted on.
            (Some(there), _) if source.entry.kind == Kind::File && there.kind == Kind::File => {
                return overwrite(&source.entry, &there, ownership)
                    .with_context(|| format!("cannot copy to {}", given.path.display()));
            }
            (_, Some((above, name))) => (above, Some(name)),
            (_, None) => {
                let shown = given.path.display();
                return Err(anyhow::anyhow!("there is no directory {shown}"));
            }
        },
    };
    let mut files = Files::below(directory, ownership, guest_only)
        .with_context(|| format!("cannot look at {}", given.path.display()))?;
    walk(
        &source.entry,
        name.as_deref(),
        source.guest_only,
        &mut files,
    )
}

fn overwrite(source: &Entry, there: &Entry, ownership: Ownership) -> Result<()> {
    ensure!(
        source.attributes.identity != there.attributes.identity,
        "it is the same file"
    );
    let from = source.read()?;
    let to = there.overwrite()?;
    files::copy(&from, &to, source.attributes.size)?;
    ownership.apply(&to, &source.attributes)
}

/// Writes an archive to standard output.
fn send(source: &Source<'_>, ownership: Ownership) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(io::stdout().lock()), ownership);
    walk(
        &source.entry,
        source.name(),
        source.guest_only,
        &mut archive,
    )?;
    archive.finish().context("cannot write to standard output")
}

/// Puts what comes as an archive from standard input into a directory.
fn receive(root: &Root, destination: &Destination<'_>, ownership: Ownership) -> Result<()> {
    let base = &destination.given.path;
    ensure!(
        destination.there() == There::Directory,
        "there is no directory {}",
        base.display()
    );
    let mut from = io::stdin().lock();
    let begun = from.fill_buf().context("cannot read standard input")?;
    ensure!(!begun.is_empty(), "there is no archive on standard input");
    extract(from, root, base, ownership, destination.guest_only)
}
