// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with an image.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::NameError;
use crate::digest::Digest;
use crate::show::quoted;
use crate::tarball::TarError;

/// An image that cannot be found, read or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The reference is empty, or the like.
    #[error(
        "{} names no image: it takes the path of an OCI image layout or archive, and optionally :TAG", quoted(.0.as_bytes())
    )]
    Reference(String),
    /// The text is no path, and no name either.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nothing is at the path.
    #[error("image {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The path cannot be opened.
    #[error("image {} cannot be opened", .path.display())]
    Open {
        /// Path of the image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a directory nor a file.
    #[error("image {} is neither a directory nor a regular file", .0.display())]
    Kind(PathBuf),
    /// A directory or archive without what makes it a layout.
    #[error("{} is not an OCI image layout, nor an archive of docker: it holds no {missing}", .path.display())]
    NotALayout {
        /// Path of the image.
        path: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// A layout of a version that is not known.
    #[error("image {} is an OCI image layout of version `{version}`; version 1 is supported", .path.display())]
    LayoutVersion {
        /// Path of the image.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// The archive as a whole is compressed.
    #[error("image archive {} is compressed with {format}; decompress it first", .path.display())]
    CompressedArchive {
        /// Path of the image.
        path: PathBuf,
        /// How.
        format: &'static str,
    },
    /// The file is no tar archive, or damaged.
    #[error("image archive {} cannot be read", .path.display())]
    Archive {
        /// Path of the image.
        path: PathBuf,
        /// Why.
        #[source]
        source: TarError,
    },
    /// The archive has more entries than any image.
    #[error("image archive {} has more than {limit} entries", .path.display())]
    ArchiveEntries {
        /// Path of the image.
        path: PathBuf,
        /// Entries allowed.
        limit: u64,
    },
    /// A blob that the image needs is not in the layout.
    #[error("image {} is incomplete: it does not hold {what}, blob {digest}", .path.display())]
    MissingBlob {
        /// Path of the image.
        path: PathBuf,
        /// What the blob is.
        what: String,
        /// Its digest.
        digest: Digest,
    },
    /// A file that an archive of docker names is not in it.
    #[error("image archive {} is incomplete: it does not hold {what}", .path.display())]
    MissingFile {
        /// Path of the archive.
        path: PathBuf,
        /// The file.
        what: String,
    },
    /// A part of the image cannot be read, or is not what its digest says.
    #[error("{what} of image {} cannot be read", .path.display())]
    Read {
        /// Path of the image.
        path: PathBuf,
        /// What was read.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A JSON document is larger than any that is meant.
    #[error("{what} of image {} has {size} bytes; the limit is {limit}", .path.display())]
    TooLarge {
        /// Path of the image.
        path: PathBuf,
        /// The document.
        what: String,
        /// Bytes.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A JSON document cannot be understood.
    #[error("{what} of image {} is not valid", .path.display())]
    Json {
        /// Path of the image.
        path: PathBuf,
        /// The document.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The tag is not in the layout.
    #[error("image {} has no tag `{tag}`; it has {known}", .path.display())]
    NoSuchTag {
        /// Path of the image.
        path: PathBuf,
        /// The tag asked for.
        tag: String,
        /// Tags that there are.
        known: String,
    },
    /// The layout holds several images, and no tag says which.
    #[error("{} holds several images; choose one by its tag: {known}", .path.display())]
    TagNeeded {
        /// Path of the layout.
        path: PathBuf,
        /// Tags that there are.
        known: String,
    },
    /// The layout holds no image.
    #[error("{} holds no image", .0.display())]
    Empty(PathBuf),
    /// No variant of the image is for this platform.
    #[error("image {} is not for {wanted}; it is for {found}", .path.display())]
    Platform {
        /// Path of the image.
        path: PathBuf,
        /// The platform that is needed.
        wanted: &'static str,
        /// Platforms of the image.
        found: String,
    },
    /// Something else than an image, such as a chart or a signature, or an image of an unknown
    /// form.
    #[error("{what} of image {} has the media type `{found}`, which is not supported", .path.display())]
    MediaType {
        /// Path of the image.
        path: PathBuf,
        /// What has the type.
        what: String,
        /// The type.
        found: String,
    },
    /// A document says that it is of another type than its descriptor does.
    #[error("{what} of image {} is ambiguous: its descriptor says `{descriptor}`, its content `{content}`", .path.display())]
    Ambiguous {
        /// Path of the image.
        path: PathBuf,
        /// The document.
        what: String,
        /// Media type by the descriptor.
        descriptor: String,
        /// Media type by the document.
        content: String,
    },
    /// Indexes in indexes without an end.
    #[error("image {} takes more than {limit} indexes and manifests to find", .path.display())]
    TooManyDocuments {
        /// Path of the image.
        path: PathBuf,
        /// Documents allowed.
        limit: usize,
    },
    /// Indexes and manifests of more bytes than any image takes.
    #[error("image {} takes more than {limit} bytes of indexes and manifests to find", .path.display())]
    LargeDocuments {
        /// Path of the image.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// The archive holds more images than any that is meant.
    #[error("image archive {} holds {found} images; the limit is {limit}", .path.display())]
    TooManyImages {
        /// Path of the archive.
        path: PathBuf,
        /// Its images.
        found: usize,
        /// Images allowed.
        limit: usize,
    },
    /// The image has more layers than any.
    #[error("image {} has {found} layers; the limit is {limit}", .path.display())]
    TooManyLayers {
        /// Path of the image.
        path: PathBuf,
        /// Its layers.
        found: usize,
        /// Layers allowed.
        limit: usize,
    },
    /// Manifest and config do not fit.
    #[error("image {} has {layers} layers, but its config states {diff_ids} of their digests", .path.display())]
    DiffIds {
        /// Path of the image.
        path: PathBuf,
        /// Layers of the manifest.
        layers: usize,
        /// Digests in the config.
        diff_ids: usize,
    },
}
