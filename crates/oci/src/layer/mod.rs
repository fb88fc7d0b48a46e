// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Layers: applying a tar stream to a directory tree, without a way out of it.
//!
//! ```text
//! apply       a stream's entries, one after another, onto a tree
//! path        names of entries: what is refused before anything is looked up
//! whiteout    names that delete
//! resolve     from a name to a directory of the tree, through its symlinks
//! tree        making, replacing and deleting in the tree
//! content     what files hold, with their holes
//! attributes  owners, modes, times, extended attributes
//! limits      how much one image may unpack
//! ```

mod apply;
mod attributes;
mod content;
mod error;
mod limits;
mod path;
mod resolve;
mod tree;
mod whiteout;

pub use self::apply::{Applier, Options};
pub use self::attributes::Ownership;
pub use self::error::{LayerError, Refusal};
pub use self::limits::Limits;
pub use crate::tarball::TarError;
