// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file's header and its program header table.

use zerocopy::FromBytes;

use super::error::{KernelError, KernelPart};
use crate::elf::{self, FileHeader, ProgramHeader};
use crate::image::Image;

/// Linux has half a dozen.
pub(super) const MAX_PROGRAM_HEADERS: u16 = 128;
/// Offset and value of the mark in the header of a bzImage (Linux/x86 boot protocol).
const BZIMAGE_MARK: (usize, &[u8; 4]) = (0x202, b"HdrS");

/// The program headers, after a look at what kind of file it is.
pub(super) fn read(image: &Image<'_>) -> Result<Vec<ProgramHeader>, KernelError> {
    let length = image.len();
    let mut bytes = [0; size_of::<FileHeader>()];
    if length < bytes.len() as u64 {
        return Err(KernelError::TooShort { length });
    }
    image.read(0, &mut bytes)?;
    let header: FileHeader = zerocopy::transmute!(bytes);
    if header.magic != *b"\x7fELF" {
        return Err(unknown_format(image, header.magic));
    }
    if (header.class, header.data, header.machine.get())
        != (elf::CLASS_64, elf::LITTLE_ENDIAN, elf::MACHINE_X86_64)
    {
        return Err(KernelError::ForeignElf {
            class: header.class,
            order: header.data,
            machine: header.machine.get(),
        });
    }
    let (count, size) = (
        header.program_header_count.get(),
        header.program_header_size.get(),
    );
    if !(1..=MAX_PROGRAM_HEADERS).contains(&count)
        || usize::from(size) != size_of::<ProgramHeader>()
    {
        return Err(KernelError::ProgramHeaders { count, size });
    }

    let offset = header.program_headers.get();
    let size = u64::from(count) * u64::from(size);
    check_file_range(image, KernelPart::ProgramHeaders, offset, size)?;
    let mut table = vec![0; usize::from(count) * size_of::<ProgramHeader>()];
    image.read(offset, &mut table)?;
    Ok(table
        .chunks_exact(size_of::<ProgramHeader>())
        // Chunks of the exact size always convert.
        .filter_map(|chunk| ProgramHeader::read_from_bytes(chunk).ok())
        .collect())
}

/// Tells a compressed kernel from everything else.
fn unknown_format(image: &Image<'_>, magic: [u8; 4]) -> KernelError {
    let (offset, mark) = BZIMAGE_MARK;
    let mut found = [0; 4];
    match image.read(offset as u64, &mut found) {
        Ok(()) if found == *mark => KernelError::BzImage,
        _ => KernelError::NotElf { magic },
    }
}

/// Whether `size` bytes at `offset` are in the file.
pub(super) fn check_file_range(
    image: &Image<'_>,
    what: KernelPart,
    offset: u64,
    size: u64,
) -> Result<(), KernelError> {
    match offset.checked_add(size) {
        Some(end) if end <= image.len() => Ok(()),
        _ => Err(KernelError::Truncated {
            what,
            offset,
            size,
            length: image.len(),
        }),
    }
}
