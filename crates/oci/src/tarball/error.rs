// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with a tar stream.

use std::io;

use thiserror::Error;

use super::entries::EXTENSION_LIMIT;

/// A stream that is no tar, or one whose meaning is not certain. Offsets are bytes into it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream cannot be read.
    #[error("the tar stream cannot be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream ends inside an entry.
    #[error("the tar stream is truncated: it ends inside an entry at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// A block that should be a header is none.
    #[error("byte {offset} of the tar stream starts no tar header: its checksum does not match")]
    Checksum {
        /// Where.
        offset: u64,
    },
    /// A field of a header does not hold what it should.
    #[error("the tar header at byte {offset} has an invalid {field}")]
    Field {
        /// Where the header starts.
        offset: u64,
        /// The field.
        field: &'static str,
    },
    /// Records of a pax header cannot be read.
    #[error("the pax header at byte {offset} is malformed: {reason}")]
    Pax {
        /// Where the header starts.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Extended headers are larger than any that is meant.
    #[error(
        "the extended headers at byte {offset} of the tar stream have more than {EXTENSION_LIMIT} bytes"
    )]
    ExtensionTooLarge {
        /// Where the last of them starts.
        offset: u64,
    },
    /// The map of a sparse file cannot be honoured.
    #[error("tar entry {entry} is a sparse file, and its map is malformed: {reason}")]
    Sparse {
        /// The entry's name.
        entry: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry of a kind that is not supported.
    #[error("tar entry {entry} is {what}, which is not supported")]
    Unsupported {
        /// The entry's name.
        entry: String,
        /// What it is.
        what: &'static str,
    },
    /// Content where there can be none: readers disagree on whether it is there.
    #[error("tar entry {entry} is not a file but has {size} bytes of content")]
    Content {
        /// The entry's name.
        entry: String,
        /// Bytes.
        size: u64,
    },
}
