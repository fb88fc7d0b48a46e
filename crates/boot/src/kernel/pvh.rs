// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entry that a kernel's notes name.

use zerocopy::{FromZeros, IntoBytes};

use super::error::{KernelError, KernelPart};
use super::headers::check_file_range;
use crate::elf::{self, ProgramHeader};
use crate::image::Image;

/// Linux's notes take a few hundred bytes.
pub(super) const MAX_NOTES: u64 = 64 * 1024;
/// The owner of the PVH note.
const XEN: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address at which a PVH kernel starts, in 32-bit protected mode.
const PHYS32_ENTRY: u32 = 18;

/// The PVH entry: that of the first note of its kind. A later note or note segment changes nothing.
pub(super) fn find_entry(image: &Image<'_>, headers: &[ProgramHeader]) -> Result<u64, KernelError> {
    for (index, header) in headers.iter().enumerate() {
        if header.kind.get() != elf::PT_NOTE {
            continue;
        }
        let (offset, size) = (header.offset.get(), header.file_size.get());
        if size > MAX_NOTES {
            return Err(KernelError::NotesTooLarge { size });
        }
        check_file_range(image, KernelPart::Segment(index), offset, size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        image.read(offset, &mut bytes)?;
        let align = if header.align.get() == 8 { 8 } else { 4 };
        let entry = elf::notes(&bytes, align)
            .filter(|note| note.name == XEN && note.kind == PHYS32_ENTRY)
            .find_map(|note| entry_address(note.description));
        if let Some(entry) = entry {
            return Ok(entry);
        }
    }
    Err(KernelError::NoPvhEntry)
}

/// Linux writes the entry as eight bytes, kernels of 32 bits as four.
fn entry_address(description: &[u8]) -> Option<u64> {
    let mut entry = u64::new_zeroed();
    match description.len() {
        4 | 8 => entry.as_mut_bytes()[..description.len()].copy_from_slice(description),
        _ => return None,
    }
    Some(u64::from_le(entry))
}
