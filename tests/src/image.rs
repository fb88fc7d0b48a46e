// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The images that `images/build.sh` makes with tools that are not ours.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use crate::host::Host;
use crate::layout::Layout;
use crate::path_from_environment;

/// A test image; it prints as what `coracle run` takes for IMAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image(&'static str);

impl Image {
    /// Busybox alone, in two gzipped layers: an image layout.
    pub const BUSYBOX: Self = Self("busybox");
    /// The same as an archive.
    pub const BUSYBOX_ARCHIVE: Self = Self("busybox.tar");
    /// Debian's minimal base: an image layout.
    pub const DEBIAN: Self = Self("debian");

    /// Where it is.
    pub fn path(self) -> PathBuf {
        path_from_environment("CORACLE_IMAGES").join(self.0)
    }

    /// A copy of this image's layout among the files of `host`, to be changed.
    #[must_use]
    pub fn copy_to(self, host: &Host) -> Layout {
        Layout::copy(&self.path(), &host.files().join(self.0))
    }
}

impl Display for Image {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(formatter)
    }
}
