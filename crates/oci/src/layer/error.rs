// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with a layer.

use std::io;

use thiserror::Error;

use crate::digest::Digest;
use crate::show::quoted;
use crate::tarball::TarError;

/// A layer that cannot be applied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// An entry that no honest builder writes, or that cannot be honoured.
    #[error("layer {layer} is refused: entry {entry} {refusal}")]
    Refused {
        /// The layer.
        layer: String,
        /// The entry's name, quoted.
        entry: String,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// The host's file system did not do what the entry needs.
    #[error("layer {layer}: cannot {action} entry {entry}")]
    Apply {
        /// The layer.
        layer: String,
        /// The entry's name, quoted.
        entry: String,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The layer is no tar stream.
    #[error("layer {layer} cannot be unpacked")]
    Tar {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: TarError,
    },
    /// The layer's bytes after its last entry cannot be read.
    #[error("layer {layer} cannot be read to its end")]
    Read {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More bytes than allowed.
    #[error("layer {layer} is refused: the image unpacks to more than {limit} bytes")]
    Bytes {
        /// The layer in which the limit was reached.
        layer: String,
        /// Bytes allowed.
        limit: u64,
    },
    /// More entries than allowed.
    #[error("layer {layer} is refused: the image has more than {limit} entries")]
    Entries {
        /// The layer in which the limit was reached.
        layer: String,
        /// Entries allowed.
        limit: u64,
    },
    /// The layer's content is not what the image's config says.
    #[error(
        "layer {layer} is damaged: uncompressed it has the digest {found}, its image's config says {expected}"
    )]
    DiffId {
        /// The layer.
        layer: String,
        /// Digest by the config.
        expected: Digest,
        /// Digest of what was unpacked.
        found: Digest,
    },
    /// Modes and times of directories could not be set.
    #[error("cannot finish directory {directory}")]
    Finish {
        /// The directory's path below the root, quoted.
        directory: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why an entry is refused. Reads on from "entry x …".
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The name starts with a slash.
    #[error("has an absolute name")]
    Absolute,
    /// The name contains `..`.
    #[error("leaves its place through `..`")]
    ParentDirectory,
    /// The name contains a NUL.
    #[error("has a NUL in its name")]
    Nul,
    /// A component of the name is longer than any file system takes.
    #[error("has a name with a component of more than 255 bytes")]
    LongComponent,
    /// The path is longer or deeper than is handled.
    #[error("has a path of more than {0} components or 4095 bytes")]
    Deep(usize),
    /// The name is the root's, the entry no directory.
    #[error("would replace the root directory")]
    Root,
    /// A whiteout that names nothing, or what is above.
    #[error("is a whiteout of no name")]
    WhiteoutName,
    /// The prefix of whiteouts in the middle of a name.
    #[error("is inside a directory whose name is reserved for whiteouts")]
    WhiteoutDirectory,
    /// What should be a directory is something else.
    #[error("is below {}, which is not a directory", quoted(.0))]
    NotADirectory(Vec<u8>),
    /// Symlinks to symlinks without an end.
    #[error("is below a chain of more than {0} symlinks")]
    Symlinks(usize),
    /// A hard link whose target's name is refused.
    #[error("is a hard link to {}, which {reason}", quoted(.target))]
    LinkTarget {
        /// The target's name.
        target: Vec<u8>,
        /// Why it is refused.
        reason: Box<Refusal>,
    },
    /// A hard link to what is not there.
    #[error("is a hard link to {}, which does not exist", quoted(.0))]
    LinkTargetMissing(Vec<u8>),
    /// A hard link to a directory.
    #[error("is a hard link to {}, which is a directory", quoted(.0))]
    LinkToDirectory(Vec<u8>),
    /// A symlink to nothing.
    #[error("is a symlink without a target, or with a NUL in it")]
    SymlinkTarget,
    /// Device nodes where they cannot be made.
    #[error("is a device node, which only root can make")]
    Device,
    /// Access control lists beyond what is kept in memory.
    #[error("brings the default access control lists of directories to more than {0} bytes")]
    DefaultAcl(usize),
}
