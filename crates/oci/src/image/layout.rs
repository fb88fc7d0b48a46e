// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image layout in a directory (image-spec, image-layout).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::member::Member;
use crate::beneath::{Symlinks, open_regular};

/// A layout directory. Symlinks in it are followed as long as they stay in it.
#[derive(Debug)]
pub(super) struct Layout {
    directory: OwnedFd,
}

impl Layout {
    pub(super) fn new(directory: File) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The file `name`, a path below the layout.
    pub(super) fn member(&self, name: &str) -> io::Result<Option<Member>> {
        match open_regular(&self.directory, name, Symlinks::Below) {
            Ok(file) => {
                let size = file.metadata()?.len();
                Ok(Some(Member::new(Arc::new(file), 0, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
