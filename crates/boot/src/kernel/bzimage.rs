// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ELF kernel inside a compressed one.

use super::error::KernelError;
use crate::compressed::vmlinuz;
use crate::image::Image;

/// The largest bzImage that is read, in bytes: those of distributions have 8 to 20 MiB.
pub(super) const MAX_SIZE: u64 = 128 << 20;

/// Unpacks the kernel of the bzImage in memory.
pub(super) fn unpack(image: &Image<'_>) -> Result<Image<'static>, KernelError> {
    let size = image.len();
    if size > MAX_SIZE {
        return Err(KernelError::BzImageTooLarge { size });
    }
    // Within the bound, so within a usize.
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    image.read(0, &mut bytes)?;
    Ok(Image::unpacked(vmlinuz::extract(&bytes)?))
}
