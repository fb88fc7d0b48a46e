// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An ELF kernel, unpacked from a bzImage if need be: its segments into guest memory, its PVH entry out of its notes.
//!
//! The whole program header table is checked before the first byte of guest memory changes. A kernel may come with an
//! image that somebody else made, so everything in it is an attacker's word: segments may not overlap, or a table of
//! a hundred segments would clear guest memory a hundred times; tables and notes have a largest size.

use std::fs::File;

use coracle_memory::GuestMemory;

use crate::elf::ProgramHeader;
use crate::image::Image;

#[cfg(feature = "compressed")]
mod bzimage;
mod error;
mod headers;
mod pvh;
mod segments;
#[cfg(test)]
mod tests;

pub use error::{KernelError, KernelPart};

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Where it starts, in 32-bit protected mode.
    pub(crate) entry: u32,
    /// The first address after its last segment.
    pub(crate) end: u64,
}

/// The ELF image in `file` and its program headers.
fn open(file: &File) -> Result<(Image<'_>, Vec<ProgramHeader>), KernelError> {
    let image = Image::new(file)?;
    let headers = headers::read(&image);
    #[cfg(feature = "compressed")]
    if let Err(KernelError::BzImage) = headers {
        let image = bzimage::unpack(&image)?;
        let headers = headers::read(&image)?;
        return Ok((image, headers));
    }
    Ok((image, headers?))
}

/// Loads the kernel in `file` into `memory`.
pub(crate) fn load(memory: &GuestMemory, file: &File) -> Result<Kernel, KernelError> {
    let (image, headers) = open(file)?;
    let segments = segments::check(memory, &image, &headers)?;
    let entry = pvh::find_entry(&image, &headers)?;
    let entry = segments
        .iter()
        .any(|segment| (segment.start..segment.end).contains(&entry))
        .then(|| u32::try_from(entry).ok())
        .flatten()
        .ok_or(KernelError::EntryOutside { entry })?;

    for segment in &segments {
        image.read_to_guest(segment.offset, segment.loaded)?;
        segment.zeroed.fill(0);
    }
    let end = segments.iter().map(|segment| segment.end).max();
    Ok(Kernel {
        entry,
        end: end.ok_or(KernelError::NoSegments)?,
    })
}
