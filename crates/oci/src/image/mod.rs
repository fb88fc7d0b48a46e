// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images as other tools store them: OCI image layouts, in a directory or a tar archive.
//!
//! ```text
//! reference   DIR[:TAG] or FILE.tar[:TAG]
//! source      the layout: blobs by digest, each checked as it is read
//!   layout    in a directory
//!   archive   in a tar archive, read in place
//! index       which images a layout holds      (image-spec, image-index)
//! manifest    which blobs make up an image      (image-spec, manifest)
//! config      how its container is to run       (image-spec, config)
//! select      from a tag and a platform to one image
//! ```

mod archive;
mod config;
mod error;
mod index;
mod layout;
mod manifest;
mod member;
mod reference;
mod select;
mod source;

pub use self::config::{ContainerConfig, ImageConfig};
pub use self::error::ImageError;
pub use self::index::{Descriptor, Index, Platform};
pub use self::manifest::{Compression, Layer, Manifest};
pub use self::reference::Reference;
pub use self::select::{Image, PLATFORM};
pub use self::source::{Blob, Source};
