// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An ELF kernel: its segments into guest memory, its PVH entry out of its notes.
//!
//! The whole program header table is checked before the first byte of guest memory changes. A kernel may come with an
//! image that somebody else made, so everything in it is an attacker's word: segments may not overlap, or a table of
//! a hundred segments would clear guest memory a hundred times; tables and notes have a largest size.

use std::fs::File;

use coracle_memory::{AccessError, GuestAddress, GuestMemory, GuestSlice};
use thiserror::Error;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::elf::{self, FileHeader, ProgramHeader};
use crate::image::{Image, ReadError};
use crate::layout::HIGH_RAM;

/// Linux has half a dozen.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Linux's notes take a few hundred bytes.
const MAX_NOTES: u64 = 64 * 1024;
/// The owner of the PVH note.
const XEN: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address at which a PVH kernel starts, in 32-bit protected mode.
const PHYS32_ENTRY: u32 = 18;
/// Offset and value of the mark in the header of a bzImage (Linux/x86 boot protocol).
const BZIMAGE_MARK: (usize, &[u8; 4]) = (0x202, b"HdrS");

/// Why a kernel cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file cannot be read.
    #[error("the kernel image cannot be read")]
    Read(#[from] ReadError),
    /// There is not even an ELF header.
    #[error("the kernel image has {length} bytes, too few for a kernel")]
    TooShort {
        /// Its length in bytes.
        length: u64,
    },
    /// Something else.
    #[error(
        "the kernel image is not an ELF file: it begins with the bytes {}",
        hex(magic)
    )]
    NotElf {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// A compressed kernel, which its own decompressor would have to unpack.
    #[error("the kernel image is a compressed bzImage; the ELF vmlinux inside it is needed")]
    BzImage,
    /// An ELF file for another machine.
    #[error(
        "the kernel image is not a little-endian ELF file of 64 bits for x86-64: class {class}, byte order {order}, machine {machine}"
    )]
    ForeignElf {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        order: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// A table that is no program header table.
    #[error("the kernel image has {count} program headers of {size} bytes; 1 to {max} of {expected} bytes are accepted", max = MAX_PROGRAM_HEADERS, expected = size_of::<ProgramHeader>())]
    ProgramHeaders {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        size: u16,
    },
    /// A part of the file that is not there.
    #[error(
        "the kernel image is truncated: {what} takes {size:#x} bytes at offset {offset:#x} of {length:#x}"
    )]
    Truncated {
        /// Which part.
        what: Part,
        /// Its offset in the file.
        offset: u64,
        /// Its size in bytes.
        size: u64,
        /// The length of the file.
        length: u64,
    },
    /// More bytes to load than the segment takes in memory.
    #[error(
        "segment {index} of the kernel has {file_size:#x} bytes in the file but only {memory_size:#x} in memory"
    )]
    SegmentSize {
        /// Its place in the program header table.
        index: usize,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
    },
    /// Where the start information and the ACPI tables are.
    #[error("segment {index} of the kernel loads at {address:#x}, below {min:#x}", min = HIGH_RAM)]
    SegmentTooLow {
        /// Its place in the program header table.
        index: usize,
        /// `p_paddr`.
        address: u64,
    },
    /// Where no guest memory is.
    #[error(
        "segment {index} of the kernel, {size:#x} bytes at {address:#x}, does not fit in guest memory"
    )]
    SegmentOutsideMemory {
        /// Its place in the program header table.
        index: usize,
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        size: u64,
        /// The reason.
        source: AccessError,
    },
    /// Two segments want the same memory.
    #[error("two segments of the kernel overlap at {address:#x}")]
    SegmentsOverlap {
        /// Where the second one begins.
        address: u64,
    },
    /// Nothing to load.
    #[error("the kernel image has no segment to load")]
    NoSegments,
    /// Notes that no kernel has.
    #[error("the kernel image has a note segment of {size:#x} bytes; {max:#x} are accepted", max = MAX_NOTES)]
    NotesTooLarge {
        /// `p_filesz`.
        size: u64,
    },
    /// Not built for this way of starting.
    #[error("the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
    NoPvhEntry,
    /// An entry to nowhere.
    #[error("the kernel's PVH entry {entry:#x} is in none of its segments")]
    EntryOutside {
        /// The entry.
        entry: u64,
    },
}

/// A part of a kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The program header table.
    ProgramHeaders,
    /// The segment of this place in the table.
    Segment(usize),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ProgramHeaders => write!(f, "the program header table"),
            Self::Segment(index) => write!(f, "segment {index}"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Where it starts, in 32-bit protected mode.
    pub(crate) entry: u32,
    /// The first address after its last segment.
    pub(crate) end: u64,
}

/// A segment that was checked: its file range is in the file, its memory range in one region.
struct Segment<'m> {
    start: u64,
    end: u64,
    offset: u64,
    loaded: GuestSlice<'m>,
    zeroed: GuestSlice<'m>,
}

/// Loads the kernel in `file` into `memory`.
pub(crate) fn load(memory: &GuestMemory, file: &File) -> Result<Kernel, KernelError> {
    let image = Image::new(file)?;
    let headers = read_program_headers(&image)?;
    let segments = check_segments(memory, &image, &headers)?;
    let entry = find_entry(&image, &headers)?;
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

fn read_program_headers(image: &Image<'_>) -> Result<Vec<ProgramHeader>, KernelError> {
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
    check_file_range(image, Part::ProgramHeaders, offset, size)?;
    let mut table = vec![0; usize::from(count) * size_of::<ProgramHeader>()];
    image.read(offset, &mut table)?;
    Ok(table
        .chunks_exact(size_of::<ProgramHeader>())
        // Chunks of the exact size always convert.
        .filter_map(|chunk| ProgramHeader::read_from_bytes(chunk).ok())
        .collect())
}

/// Tells a compressed kernel, a common mistake, from everything else.
fn unknown_format(image: &Image<'_>, magic: [u8; 4]) -> KernelError {
    let (offset, mark) = BZIMAGE_MARK;
    let mut found = [0; 4];
    match image.read(offset as u64, &mut found) {
        Ok(()) if found == *mark => KernelError::BzImage,
        _ => KernelError::NotElf { magic },
    }
}

fn check_file_range(
    image: &Image<'_>,
    what: Part,
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

/// The segments to load, in the order of their addresses.
fn check_segments<'m>(
    memory: &'m GuestMemory,
    image: &Image<'_>,
    headers: &[ProgramHeader],
) -> Result<Vec<Segment<'m>>, KernelError> {
    let mut segments = headers
        .iter()
        .enumerate()
        .filter(|(_, header)| header.kind.get() == elf::PT_LOAD && header.memory_size.get() > 0)
        .map(|(index, header)| check_segment(memory, image, index, header))
        .collect::<Result<Vec<_>, _>>()?;
    segments.sort_unstable_by_key(|segment| segment.start);
    match segments.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => Err(KernelError::SegmentsOverlap {
            address: pair[1].start,
        }),
        None if segments.is_empty() => Err(KernelError::NoSegments),
        None => Ok(segments),
    }
}

fn check_segment<'m>(
    memory: &'m GuestMemory,
    image: &Image<'_>,
    index: usize,
    header: &ProgramHeader,
) -> Result<Segment<'m>, KernelError> {
    let (offset, file_size) = (header.offset.get(), header.file_size.get());
    let (address, size) = (header.physical_address.get(), header.memory_size.get());
    let wrong_size = KernelError::SegmentSize {
        index,
        file_size,
        memory_size: size,
    };
    check_file_range(image, Part::Segment(index), offset, file_size)?;
    if address < HIGH_RAM {
        return Err(KernelError::SegmentTooLow { index, address });
    }
    // On a host of 64 bits every u64 is a usize.
    let (Ok(memory_len), Ok(file_len)) = (usize::try_from(size), usize::try_from(file_size)) else {
        return Err(wrong_size);
    };
    let slice = memory
        .slice(GuestAddress(address), memory_len)
        .map_err(|source| KernelError::SegmentOutsideMemory {
            index,
            address,
            size,
            source,
        })?;
    let (Some(loaded), Some(zeroed)) = (
        slice.sub(0, file_len),
        memory_len
            .checked_sub(file_len)
            .and_then(|rest| slice.sub(file_len, rest)),
    ) else {
        return Err(wrong_size);
    };
    Ok(Segment {
        start: address,
        // The slice exists, so its end is an address.
        end: address.saturating_add(size),
        offset,
        loaded,
        zeroed,
    })
}

/// The PVH entry: that of the first note of its kind. A later note or note segment changes nothing.
fn find_entry(image: &Image<'_>, headers: &[ProgramHeader]) -> Result<u64, KernelError> {
    for (index, header) in headers.iter().enumerate() {
        if header.kind.get() != elf::PT_NOTE {
            continue;
        }
        let (offset, size) = (header.offset.get(), header.file_size.get());
        if size > MAX_NOTES {
            return Err(KernelError::NotesTooLarge { size });
        }
        check_file_range(image, Part::Segment(index), offset, size)?;
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::testing::{Part as ElfPart, elf, file, note, notes, pvh_note, segment};

    const MIB: u64 = 1 << 20;

    fn memory() -> GuestMemory {
        GuestMemory::anonymous(&coracle_memory::layout(8 * MIB)).unwrap()
    }

    fn load_parts(parts: &[ElfPart]) -> Result<Kernel, KernelError> {
        load(&memory(), &file(&elf(parts)))
    }

    fn refusal(parts: &[ElfPart]) -> String {
        load_parts(parts).unwrap_err().to_string()
    }

    #[test]
    fn segments_are_loaded_at_their_physical_addresses() {
        let memory = memory();
        let image = elf(&[
            segment(2 * MIB, b"second", 6),
            segment(MIB, b"first", 5),
            pvh_note(MIB + 2),
        ]);

        let kernel = load(&memory, &file(&image)).unwrap();

        let (mut first, mut second) = ([0; 5], [0; 6]);
        memory.read(GuestAddress(MIB), &mut first).unwrap();
        memory.read(GuestAddress(2 * MIB), &mut second).unwrap();
        assert_eq!((&first, &second), (b"first", b"second"));
        assert_eq!(
            (u64::from(kernel.entry), kernel.end),
            (MIB + 2, 2 * MIB + 6)
        );
    }

    #[test]
    fn bss_is_zeroed() {
        let memory = memory();
        memory.write(GuestAddress(MIB), &[0xff; 10_001]).unwrap();
        let image = elf(&[segment(MIB, b"code", 10_000), pvh_note(MIB)]);

        load(&memory, &file(&image)).unwrap();

        let mut found = [0; 10_001];
        memory.read(GuestAddress(MIB), &mut found).unwrap();
        assert_eq!(&found[..4], b"code");
        assert!(found[4..10_000].iter().all(|byte| *byte == 0));
        assert_eq!(found[10_000], 0xff);
    }

    #[rstest]
    #[case::without_an_entry(notes(&note(b"GNU\0", 3, &[0; 20])))]
    #[case::with_another_entry(pvh_note(MIB + 1))]
    fn later_note_segment_does_not_override_the_entry(#[case] later: ElfPart) {
        let kernel = load_parts(&[segment(MIB, b"code", 4), pvh_note(MIB), later]).unwrap();

        assert_eq!(u64::from(kernel.entry), MIB);
    }

    #[test]
    fn entry_of_four_bytes_is_read() {
        let entry = note(b"Xen\0", 18, &(MIB as u32).to_le_bytes());

        let kernel = load_parts(&[segment(MIB, b"code", 4), notes(&entry)]).unwrap();

        assert_eq!(u64::from(kernel.entry), MIB);
    }

    #[rstest]
    #[case::below_the_kernel(&[segment(0xf_ffff, b"code", 4), pvh_note(0xf_ffff)],
        "segment 0 of the kernel loads at 0xfffff, below 0x100000")]
    #[case::outside_memory(&[segment(8 * MIB - 3, b"code", 4), pvh_note(8 * MIB)],
        "segment 0 of the kernel, 0x4 bytes at 0x7ffffd, does not fit in guest memory")]
    #[case::end_wraps(&[segment(u64::MAX, b"code", 4), pvh_note(MIB)],
        "segment 0 of the kernel, 0x4 bytes at 0xffffffffffffffff, does not fit in guest memory")]
    #[case::huge(&[segment(MIB, b"code", u64::MAX), pvh_note(MIB)],
        "segment 0 of the kernel, 0xffffffffffffffff bytes at 0x100000, does not fit in guest memory")]
    #[case::more_in_the_file(&[segment(MIB, b"code", 3), pvh_note(MIB)],
        "segment 0 of the kernel has 0x4 bytes in the file but only 0x3 in memory")]
    #[case::overlap(&[segment(MIB, b"code", 5000), segment(MIB + 4096, b"data", 4), pvh_note(MIB)],
        "two segments of the kernel overlap at 0x101000")]
    #[case::nothing(&[pvh_note(MIB)], "the kernel image has no segment to load")]
    #[case::no_entry(&[segment(MIB, b"code", 4)],
        "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
    #[case::entry_of_another_kind(&[segment(MIB, b"code", 4), notes(&note(b"Xen\0", 17, &[0; 8]))],
        "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
    #[case::entry_of_odd_size(&[segment(MIB, b"code", 4), notes(&note(b"Xen\0", 18, &[0; 5]))],
        "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
    #[case::entry_behind_its_segment(&[segment(MIB, b"code", 4), pvh_note(MIB + 4)],
        "the kernel's PVH entry 0x100004 is in none of its segments")]
    #[case::entry_of_64_bits(&[segment(MIB, b"code", 4), pvh_note((1 << 32) + MIB)],
        "the kernel's PVH entry 0x100100000 is in none of its segments")]
    #[case::large_notes(&[segment(MIB, b"code", 4), notes(&[0; 0x1_0001])],
        "the kernel image has a note segment of 0x10001 bytes; 0x10000 are accepted")]
    fn unusable_segment_is_refused(#[case] parts: &[ElfPart], #[case] expected: &str) {
        assert_eq!(refusal(parts), expected);
    }

    #[test]
    fn too_many_program_headers_are_refused() {
        let parts = vec![segment(MIB, b"", 0); 129];

        assert_eq!(
            refusal(&parts),
            "the kernel image has 129 program headers of 56 bytes; 1 to 128 of 56 bytes are accepted"
        );
    }

    #[rstest]
    #[case::empty(&[], "the kernel image has 0 bytes, too few for a kernel")]
    #[case::header_cut(&[0x7f; 63], "the kernel image has 63 bytes, too few for a kernel")]
    #[case::script(&[b'#'; 64], "the kernel image is not an ELF file: it begins with the bytes 23 23 23 23")]
    fn file_that_is_no_kernel_is_refused(#[case] content: &[u8], #[case] expected: &str) {
        let error = load(&memory(), &file(content)).unwrap_err();

        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn bzimage_is_named() {
        let mut content = vec![0; 0x1000];
        content[0x202..0x206].copy_from_slice(b"HdrS");

        let error = load(&memory(), &file(&content)).unwrap_err();

        assert!(matches!(error, KernelError::BzImage));
    }

    #[rstest]
    #[case::class_of_32_bits(4, 1)]
    #[case::big_endian(5, 2)]
    #[case::machine_of_arm(18, 183)]
    fn elf_file_for_another_machine_is_refused(#[case] offset: usize, #[case] value: u8) {
        let mut image = elf(&[segment(MIB, b"code", 4), pvh_note(MIB)]);
        image[offset] = value;

        let error = load(&memory(), &file(&image)).unwrap_err();

        assert!(matches!(error, KernelError::ForeignElf { .. }));
    }

    #[test]
    fn image_cut_anywhere_is_refused() {
        let image = elf(&[segment(MIB, b"code", 4), pvh_note(MIB)]);

        let accepted: Vec<_> = (0..image.len())
            .filter(|length| load(&memory(), &file(&image[..*length])).is_ok())
            .collect();

        assert_eq!(accepted, [0usize; 0]);
    }

    #[test]
    fn refused_kernel_leaves_guest_memory_alone() {
        let memory = memory();
        let image = elf(&[
            segment(MIB, b"code", 4),
            segment(9 * MIB, b"data", 4),
            pvh_note(MIB),
        ]);

        load(&memory, &file(&image)).unwrap_err();

        let mut found = [0xff; 4];
        memory.read(GuestAddress(MIB), &mut found).unwrap();
        assert_eq!(found, [0; 4]);
    }

    #[test]
    fn directory_is_refused() {
        let directory = File::open("/").unwrap();

        let error = load(&memory(), &directory).unwrap_err();

        assert!(matches!(error, KernelError::Read(ReadError::NotRegular)));
    }
}
