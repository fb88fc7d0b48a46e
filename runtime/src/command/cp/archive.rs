// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies as a tar archive, on our standard streams.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, linkat, unlinkat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::entry::{Attributes, Kind};
use super::files::{Ownership, create, make_directory, put_link};
use super::guest_only::GuestOnly;
use super::root::Root;
use super::walk::{Receiver, shown, tell_left_out};

/// Bytes of holes that an archive may have in all. A hole costs a guest nothing, and in an archive it is written out: without
/// a limit one file could fill whatever the archive goes to.
const HOLES: u64 = 64 << 30;

/// What `stat` counts blocks in.
const BLOCK: u64 = 512;

/// An archive that is written.
pub struct Archive<W: Write> {
    builder: Builder<W>,
    ownership: Ownership,
    path: PathBuf,
    /// How many bytes of holes may still come.
    pub(super) holes: u64,
}

impl<W: Write> Archive<W> {
    pub fn new(to: W, ownership: Ownership) -> Self {
        Self {
            builder: Builder::new(to),
            ownership,
            path: PathBuf::new(),
            holes: HOLES,
        }
    }

    fn header(&self, kind: EntryType, attributes: &Attributes, size: u64) -> Header {
        let (uid, gid) = self.ownership.owner(attributes);
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(self.ownership.mode(attributes));
        header.set_uid(uid.as_raw().into());
        header.set_gid(gid.as_raw().into());
        header.set_mtime(u64::try_from(attributes.modified.0).unwrap_or(0));
        header.set_size(size);
        header
    }

    /// Writes the archive's end.
    pub fn finish(self) -> Result<()> {
        let mut to = self.builder.into_inner()?;
        Ok(to.flush()?)
    }
}

impl<W: Write> Receiver for Archive<W> {
    fn enter(&mut self, name: &OsStr, attributes: &Attributes) -> Result<()> {
        self.path.push(name);
        let mut header = self.header(EntryType::Directory, attributes, 0);
        let (builder, path) = (&mut self.builder, &self.path);
        Ok(builder.append_data(&mut header, path, io::empty())?)
    }

    fn leave(&mut self) -> Result<()> {
        self.path.pop();
        Ok(())
    }

    fn file(&mut self, name: &OsStr, attributes: &Attributes, content: &File) -> Result<()> {
        let there = content.metadata()?.blocks().saturating_mul(BLOCK);
        let holes = attributes.size.saturating_sub(there);
        self.holes = self.holes.checked_sub(holes).with_context(|| {
            format!(
                "an archive holds at most {HOLES} bytes of holes, which it has no short form for, and this file has {holes}: \
                 copy to a directory instead, where they stay holes"
            )
        })?;
        let mut header = self.header(EntryType::Regular, attributes, attributes.size);
        // It may become shorter while it is read, and its length is written already.
        let content = content.chain(io::repeat(0)).take(attributes.size);
        let path = self.path.join(name);
        Ok(self.builder.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, name: &OsStr, attributes: &Attributes, target: &OsStr) -> Result<()> {
        let mut header = self.header(EntryType::Symlink, attributes, 0);
        let path = self.path.join(name);
        Ok(self.builder.append_link(&mut header, path, target)?)
    }
}

/// Puts what is in an archive below the directory `base` of `root`. Names in it that begin with a slash are below it as
/// well; none leads upwards. What would come where only the guest has something is left out, and said so.
pub fn extract(
    from: impl Read,
    root: &Root,
    base: &Path,
    ownership: Ownership,
    guest_only: Option<&GuestOnly>,
) -> Result<()> {
    let mut extraction = Extraction {
        root,
        base,
        ownership,
        guest_only,
        left_out: None,
        directories: Vec::new(),
    };
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().context("cannot read the archive")? {
        let mut entry = entry.context("cannot read the archive")?;
        let path = entry
            .path()
            .context("the archive has a name that is none")?;
        let path = path.into_owned();
        extraction
            .take(&mut entry, &path)
            .with_context(|| format!("cannot copy {}", shown(&path)))?;
    }
    extraction.finish()
}

struct Extraction<'r> {
    root: &'r Root,
    base: &'r Path,
    ownership: Ownership,
    guest_only: Option<&'r GuestOnly>,
    /// What was left out last: nothing more is said of what is below.
    left_out: Option<PathBuf>,
    /// What was made, to get its time once it is filled.
    directories: Vec<(PathBuf, Attributes)>,
}

impl Extraction<'_> {
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<()> {
        let path = below(path)?;
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else {
            // The base itself, which is there.
            return Ok(());
        };
        let kind = match entry.header().entry_type() {
            EntryType::Directory => Kind::Directory,
            _ => Kind::File,
        };
        if self.is_out_of_reach(&path, kind)? {
            let is_told = self
                .left_out
                .as_ref()
                .is_some_and(|it| path.starts_with(it));
            if !is_told {
                tell_left_out(&path, "the guest alone has its place");
                self.left_out = Some(path);
            }
            return Ok(());
        }
        let parent = self.parent(above)?;
        let parent = parent.as_fd();
        let attributes = attributes(entry.header())?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => {
                if make_directory(parent, name)?.1 {
                    self.directories.push((path, attributes));
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = create(parent, name)?;
                io::copy(entry, &mut file)?;
                self.ownership.apply(&file, &attributes)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.context("the link leads nowhere")?;
                let link = put_link(parent, name, target.as_os_str())?;
                self.ownership.apply_to_link(link, &attributes)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.context("the link leads nowhere")?;
                let target = below(&target)?;
                let (Some(other), Some(above)) = (target.file_name(), target.parent()) else {
                    bail!("the link leads to a directory");
                };
                if self.is_out_of_reach(&target, Kind::File)? {
                    tell_left_out(&path, "what it is the same file as is left out");
                    return Ok(());
                }
                let directory = self.parent(above)?;
                match unlinkat(parent, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                linkat(&directory, other, parent, name, AtFlags::empty())?;
            }
            EntryType::XGlobalHeader => {}
            _ => tell_left_out(&path, "it is not a file, directory or link"),
        }
        Ok(())
    }

    fn is_out_of_reach(&self, path: &Path, kind: Kind) -> io::Result<bool> {
        match self.guest_only {
            Some(guest_only) => guest_only.takes_path(self.root, &self.base.join(path), kind),
            None => Ok(false),
        }
    }

    fn parent(&self, above: &Path) -> Result<OwnedFd> {
        let path = self.base.join(above);
        self.root
            .make_directory(&path)
            .context("cannot reach its directory")
    }

    fn finish(self) -> Result<()> {
        // The deepest first, as far as the archive had them in order.
        for (path, attributes) in self.directories.iter().rev() {
            let whole = self.base.join(path);
            // Who has put something else there meanwhile keeps it.
            let Some(found) = self.root.find(&whole, false)? else {
                continue;
            };
            if let Ok(directory) = found.list() {
                self.ownership.apply(directory.fd()?, attributes)?;
            }
        }
        Ok(())
    }
}

/// A path of an archive, relative and without `.`.
fn below(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => bail!("it leads upwards"),
        }
    }
    Ok(clean)
}

fn attributes(header: &Header) -> Result<Attributes> {
    let id = |number: u64| u32::try_from(number).context("it belongs to nobody");
    Ok(Attributes {
        mode: header.mode()? & 0o7777,
        uid: id(header.uid()?)?,
        gid: id(header.gid()?)?,
        size: header.size()?,
        modified: (i64::try_from(header.mtime()?).unwrap_or(0), 0),
        identity: (0, 0),
    })
}
