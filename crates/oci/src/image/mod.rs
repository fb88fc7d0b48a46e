// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images as other tools store them: OCI image layouts, in a directory or a tar archive, and archives of `docker save`.
//!
//! ```text
//! reference   what a user calls an image by: a path of a layout, or a name
//! name        [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
//! source      the layout: blobs by digest, each checked as it is read
//!   layout    in a directory
//!   archive   in a tar archive, read in place
//!   docker    a layout made up for an archive of `docker save`
//! index       which images a layout holds      (image-spec, image-index)
//! manifest    which blobs make up an image      (image-spec, manifest)
//! config      how its container is to run       (image-spec, config)
//! tag         which of several images is meant
//! platform    which entries of an index are for us
//! select      from there to one image
//! ```

mod archive;
mod compression;
mod config;
mod docker;
mod error;
mod index;
mod layout;
mod manifest;
mod member;
mod name;
mod platform;
mod reference;
mod select;
mod source;
mod tag;

pub use self::config::{ContainerConfig, ImageConfig};
pub use self::error::ImageError;
pub(crate) use self::index::REF_NAME;
pub use self::index::{Descriptor, Index};
pub use self::manifest::{Compression, Layer, Manifest};
pub use self::name::{Name, NameError};
pub use self::platform::{PLATFORM, Platform, candidates};
pub use self::reference::{PathReference, Reference};
pub use self::select::Image;
pub use self::source::{Blob, Source};
