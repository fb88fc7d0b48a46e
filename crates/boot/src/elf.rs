// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of ELF (Tool Interface Standard 1.2, System V ABI for AMD64) that a kernel is loaded by: pure functions
//! over bytes.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `e_ident[EI_CLASS]` of a 64-bit file.
pub(crate) const CLASS_64: u8 = 2;
/// `e_ident[EI_DATA]` of a little-endian file.
pub(crate) const LITTLE_ENDIAN: u8 = 1;
/// `e_machine` of x86-64.
pub(crate) const MACHINE_X86_64: u16 = 62;
/// A segment to be loaded.
pub(crate) const PT_LOAD: u32 = 1;
/// A segment of notes.
pub(crate) const PT_NOTE: u32 = 4;

/// `Elf64_Ehdr`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct FileHeader {
    pub(crate) magic: [u8; 4],
    pub(crate) class: u8,
    pub(crate) data: u8,
    _ident: [u8; 10],
    _kind: U16,
    pub(crate) machine: U16,
    _version: U32,
    _entry: U64,
    pub(crate) program_headers: U64,
    _section_headers: U64,
    _flags: U32,
    _header_size: U16,
    pub(crate) program_header_size: U16,
    pub(crate) program_header_count: U16,
    _section_header_size: U16,
    _section_header_count: U16,
    _section_names: U16,
}

/// `Elf64_Phdr`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: U32,
    _flags: U32,
    pub(crate) offset: U64,
    _virtual_address: U64,
    pub(crate) physical_address: U64,
    pub(crate) file_size: U64,
    pub(crate) memory_size: U64,
    pub(crate) align: U64,
}

/// `Elf64_Nhdr`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NoteHeader {
    name_size: U32,
    description_size: U32,
    kind: U32,
}

/// One note of a [`PT_NOTE`] segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u32,
    pub(crate) description: &'a [u8],
}

/// The notes of a segment, in order. A note that says to be longer than its segment ends them.
pub(crate) fn notes(segment: &[u8], align: usize) -> impl Iterator<Item = Note<'_>> {
    let mut rest = segment;
    std::iter::from_fn(move || {
        let (header, after) = NoteHeader::read_from_prefix(rest).ok()?;
        let (name, after) = split_padded(after, header.name_size.get(), align)?;
        let (description, after) = split_padded(after, header.description_size.get(), align)?;
        rest = after;
        Some(Note {
            name,
            kind: header.kind.get(),
            description,
        })
    })
}

/// Splits off `len` bytes and the padding behind them, which the last note of a segment may lack.
fn split_padded(bytes: &[u8], len: u32, align: usize) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(len).ok()?;
    let padded = len.checked_next_multiple_of(align)?;
    let field = bytes.get(..len)?;
    Some((field, bytes.get(padded..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::testing::note;

    #[test]
    fn notes_are_read_in_order() {
        let segment = [
            note(b"GNU\0", 3, &[1, 2, 3, 4, 5]),
            note(b"Xen\0", 18, &[9; 8]),
        ]
        .concat();

        let found: Vec<_> = notes(&segment, 4).collect();

        assert_eq!(found.len(), 2);
        assert_eq!(found[0].description, &[1, 2, 3, 4, 5]);
        assert_eq!(found[1].name, b"Xen\0");
        assert_eq!(found[1].kind, 18);
    }

    #[test]
    fn last_note_may_lack_its_padding() {
        let mut segment = note(b"Xen\0", 18, &[1, 2, 3, 4, 5]);
        segment.truncate(12 + 4 + 5);

        let found: Vec<_> = notes(&segment, 4).collect();

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].description, &[1, 2, 3, 4, 5]);
    }

    #[rstest]
    #[case::name_past_the_end(0, u32::MAX)]
    #[case::name_one_too_long(0, 13)]
    #[case::description_past_the_end(4, u32::MAX)]
    #[case::description_one_too_long(4, 9)]
    fn note_past_its_segment_is_left_out(#[case] field: usize, #[case] size: u32) {
        let mut segment = note(b"Xen\0", 18, &[0; 8]);
        segment[field..field + 4].copy_from_slice(&size.to_le_bytes());

        let found = notes(&segment, 4).count();

        assert_eq!(found, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_end(segment in prop::collection::vec(any::<u8>(), 0..512), align in prop::sample::select(vec![4usize, 8])) {
            prop_assert!(notes(&segment, align).count() <= segment.len() / size_of::<NoteHeader>());
        }
    }
}
