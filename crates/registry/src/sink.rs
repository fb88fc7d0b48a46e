// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where blobs go.

use std::io::{self, Read};

use coracle_oci::image::Descriptor;
use coracle_oci::store::Receiving;

/// A store of blobs by digest. It is used from several threads at once.
pub trait Sink: Sync {
    /// Whether the blob is there, whole; it is not pulled then.
    ///
    /// # Errors
    ///
    /// Where that cannot be told.
    fn contains(&self, blob: &Descriptor) -> io::Result<bool>;

    /// Takes a blob. `content` ends only where size and digest were as the descriptor has them; where it gives an error,
    /// nothing is to be kept. A manifest comes after all
    /// the blobs that it names, an index after the manifest that was chosen.
    ///
    /// # Errors
    ///
    /// Those of `content`, and where the blob cannot be stored.
    fn store(&self, blob: &Descriptor, content: &mut dyn Read) -> io::Result<()>;
}

/// The store of images. Once pulled, the image is given its name by [`Receiving::commit`], with
/// [`Pulled::image`](crate::Pulled::image).
impl Sink for Receiving<'_> {
    fn contains(&self, blob: &Descriptor) -> io::Result<bool> {
        Ok(self.has(&blob.digest, blob.size))
    }

    fn store(&self, blob: &Descriptor, content: &mut dyn Read) -> io::Result<()> {
        let mut writer = self
            .blob(&blob.digest, blob.size)
            .map_err(io::Error::other)?;
        io::copy(content, &mut writer)?;
        writer.commit().map_err(io::Error::other)
    }
}
