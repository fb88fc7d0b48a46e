// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A layer's entries, one after another, onto a tree (image-spec, layer, "Applying Changesets").

use std::io::{self, Read};
use std::os::fd::OwnedFd;

use super::attributes::{Attributes, Ownership};
use super::content;
use super::error::{LayerError, Refusal};
use super::limits::{Limits, Metered};
use super::path::TreePath;
use super::tree::{Fault, Tree};
use super::whiteout::{self, Action};
use crate::show::quoted;
use crate::tarball::{Entries, Entry, Kind, TarError};

/// How an image is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How much it may unpack.
    pub limits: Limits,
    /// Who owns what is unpacked.
    pub ownership: Ownership,
    /// Most threads that decode layers ahead, 0 for none; `None` for one a processor, up to 4, and none where there is one
    /// processor. Each takes up to 128 MiB, and commonly 8.
    pub decoders: Option<usize>,
}

/// Applies layers to a directory, the lowest first.
///
/// The directory has to be the caller's alone until [`Applier::finish`]; after an error its
/// content is of no use.
pub struct Applier {
    tree: Tree,
    ownership: Ownership,
    limits: Limits,
    bytes_left: u64,
    entries: u64,
    buffer: Vec<u8>,
}

impl Applier {
    /// Starts with the empty directory `root`.
    pub fn new(root: OwnedFd, options: Options) -> Self {
        Self {
            tree: Tree::new(root, options.ownership),
            ownership: options.ownership,
            limits: options.limits,
            bytes_left: options.limits.bytes,
            entries: 0,
            buffer: vec![0; 128 << 10],
        }
    }

    /// Applies the layer `name`, an uncompressed tar stream, and reads it to its end.
    ///
    /// # Errors
    /// Where the stream is no tar, an entry leads out of the root or cannot be made, or a limit is
    /// reached.
    pub fn layer(&mut self, name: &str, stream: impl Read) -> Result<(), LayerError> {
        let mut bytes_left = self.bytes_left;
        let mut stream = Metered::new(stream, &mut bytes_left);
        let outcome = self
            .entries(name, &mut stream)
            .and_then(|()| drain(name, &mut stream, &mut self.buffer));
        let exceeded = stream.exceeded();
        self.bytes_left = bytes_left;
        if exceeded {
            return Err(LayerError::Bytes {
                layer: name.to_owned(),
                limit: self.limits.bytes,
            });
        }
        outcome
    }

    /// Gives the directories their modes and times.
    ///
    /// # Errors
    /// Where the file system does not let it.
    pub fn finish(self) -> Result<(), LayerError> {
        self.tree.finish()
    }

    fn entries(&mut self, layer: &str, stream: impl Read) -> Result<(), LayerError> {
        self.tree.start_layer();
        let mut entries = Entries::new(stream);
        let tar = |source| LayerError::Tar {
            layer: layer.to_owned(),
            source,
        };
        while let Some(entry) = entries.next().map_err(tar)? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(LayerError::Entries {
                    layer: layer.to_owned(),
                    limit: self.limits.entries,
                });
            }
            let name = quoted(&entry.path);
            self.entry(entry, &mut entries)
                .map_err(|fault| fault.of(layer, name))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        mut entry: Entry,
        entries: &mut Entries<impl Read>,
    ) -> Result<(), EntryFault> {
        let path = TreePath::from_name(&entry.path)?;
        let attributes = Attributes::of(&mut entry, self.ownership);
        let Some((directory, name)) = path.split() else {
            return match entry.kind {
                Kind::Directory => Ok(self.tree.set_root(attributes)?),
                _ => Err(Refusal::Root.into()),
            };
        };
        match whiteout::action(&path)? {
            Action::Ignore => {}
            Action::Delete(hidden) => self.tree.hide(&directory, hidden)?,
            Action::Empty => self.tree.hide_all(&directory)?,
            Action::Make => {
                let place = self.tree.place(&directory, name)?;
                match &entry.kind {
                    Kind::Directory => self.tree.directory(place, attributes)?,
                    Kind::Symlink(target) => self.tree.symlink(place, target, &attributes)?,
                    Kind::HardLink(target) => self.tree.hard_link(place, target)?,
                    Kind::Fifo | Kind::CharacterDevice(..) | Kind::BlockDevice(..) => {
                        self.tree.node(place, &entry.kind, &attributes)?;
                    }
                    Kind::File => {
                        let file = self.tree.file(place)?;
                        let file = content::write(entries, &entry, file, &mut self.buffer)?;
                        self.tree.finish_file(&file, &attributes)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads what follows the last entry, so that digests over the stream cover all of it.
fn drain(layer: &str, stream: &mut impl Read, buffer: &mut [u8]) -> Result<(), LayerError> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(LayerError::Read {
                    layer: layer.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Why an entry could not be applied: it, or the stream that it is in.
pub(super) enum EntryFault {
    Tree(Fault),
    Tar(TarError),
}

impl EntryFault {
    fn of(self, layer: &str, entry: String) -> LayerError {
        let layer = layer.to_owned();
        match self {
            Self::Tree(Fault::Refused(refusal)) => LayerError::Refused {
                layer,
                entry,
                refusal,
            },
            Self::Tree(Fault::Io(action, source)) => LayerError::Apply {
                layer,
                entry,
                action,
                source,
            },
            Self::Tar(source) => LayerError::Tar { layer, source },
        }
    }
}

impl From<Fault> for EntryFault {
    fn from(fault: Fault) -> Self {
        Self::Tree(fault)
    }
}

impl From<Refusal> for EntryFault {
    fn from(refusal: Refusal) -> Self {
        Self::Tree(Fault::Refused(refusal))
    }
}

impl From<TarError> for EntryFault {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}
