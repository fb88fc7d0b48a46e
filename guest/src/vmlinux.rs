// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes the padding out of an ELF kernel.
//!
//! The linker puts some parts of a kernel at multiples of 2 MiB, and fills what is between them: a third of a small
//! kernel is padding, which a VMM would read into the guest's memory at each start. Here each segment is cut where a
//! long run of padding is:
//!
//! - a run of zeros stays memory that is to be zero, but is no part of the file any more;
//! - a run of trap instructions (`int3`, which code is padded with) is no part of any segment. Nothing refers to it.
//!
//! Sections are left out, as symbols are: what debugs a kernel reads the file that this one was made of.

use std::mem::size_of;

use object::elf::{FileHeader64, PT_LOAD, ProgramHeader64, SHN_UNDEF};
use object::pod::bytes_of;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, U16, U64};
use thiserror::Error;

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;

/// What `object` takes as a proof that the byte order is known.
const ENDIAN: LittleEndian = LittleEndian;
const PAGE: usize = 4096;
/// The shortest run of padding that is worth a segment, in bytes.
const LONG: usize = 64 << 10;
/// The instruction that the linker fills gaps between code with.
const TRAP: u8 = 0xcc;

/// Why an ELF file cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// It is no ELF file of 64 bits, little-endian.
    #[error("the kernel is no ELF file of 64 bits")]
    NotElf(#[source] object::Error),
    /// A segment is said to be where no file is.
    #[error("segment {index} of the kernel leads beyond the file's end")]
    OutsideFile {
        /// Which one.
        index: usize,
    },
    /// Segments are counted by 16 bits.
    #[error("the kernel would have {count} segments")]
    TooManySegments {
        /// How many.
        count: usize,
    },
}

/// The ELF kernel `image` without its padding, its sections and its symbols.
///
/// # Errors
///
/// [`PackError`]: it is no ELF file of 64 bits, or a segment of it leads beyond its end.
pub fn without_padding(image: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut header = *Header::parse(image).map_err(PackError::NotElf)?;
    let endian = header.endian().map_err(PackError::NotElf)?;
    let segments = header
        .program_headers(endian, image)
        .map_err(PackError::NotElf)?;
    let mut parts = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let data = segment
            .data(endian, image)
            .map_err(|()| PackError::OutsideFile { index })?;
        if segment.p_type(endian) == PT_LOAD {
            parts.extend(cut(segment, data));
        } else {
            parts.push((*segment, data));
        }
    }
    let count = parts.len();
    let segment_count = u16::try_from(count).map_err(|_| PackError::TooManySegments { count })?;
    header.e_phoff = U64::new(endian, size_of::<Header>() as u64);
    header.e_phnum = U16::new(endian, segment_count);
    header.e_shoff = U64::new(endian, 0);
    header.e_shnum = U16::new(endian, 0);
    header.e_shstrndx = U16::new(endian, SHN_UNDEF);
    Ok(write(&header, parts))
}

/// Bytes of a segment's memory that are of one kind.
#[derive(Clone, Copy)]
struct Run {
    kind: Kind,
    length: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Contents,
    Zeros,
    Traps,
}

/// The runs of a segment that has `data` in the file and `memory` bytes of memory, each of another kind than the one before.
fn runs(data: &[u8], memory: u64) -> Vec<Run> {
    let mut pages = Vec::new();
    for page in data.chunks(PAGE) {
        let kind = match page.first() {
            Some(&first) if page.iter().any(|byte| *byte != first) => Kind::Contents,
            Some(0) => Kind::Zeros,
            Some(&TRAP) => Kind::Traps,
            _ => Kind::Contents,
        };
        extend(&mut pages, kind, page.len() as u64);
    }
    let mut runs = Vec::new();
    for run in pages {
        let worth = run.length >= LONG as u64;
        let kind = if worth { run.kind } else { Kind::Contents };
        extend(&mut runs, kind, run.length);
    }
    // What never was in the file is zeros as well.
    let rest = memory.saturating_sub(data.len() as u64);
    if rest > 0 {
        extend(&mut runs, Kind::Zeros, rest);
    }
    runs
}

fn extend(runs: &mut Vec<Run>, kind: Kind, length: u64) {
    match runs.last_mut() {
        Some(last) if last.kind == kind => last.length = last.length.saturating_add(length),
        _ => runs.push(Run { kind, length }),
    }
}

/// Cuts a segment that is to be loaded where its padding is.
fn cut<'d>(segment: &Segment, data: &'d [u8]) -> Vec<(Segment, &'d [u8])> {
    let mut pieces: Vec<(Segment, &[u8])> = Vec::new();
    let mut rest = data;
    let mut start = 0;
    let mut before = None;
    for Run { kind, length } in runs(data, segment.p_memsz(ENDIAN)) {
        // Of zeros behind the file's part, fewer bytes or none are left.
        let size = usize::try_from(length).map_or(rest.len(), |size| size.min(rest.len()));
        let (bytes, after) = rest.split_at(size);
        match (kind, pieces.last_mut()) {
            (Kind::Contents, _) => pieces.push((piece(segment, start, length), bytes)),
            // Memory that follows what is in the file needs no segment of its own.
            (Kind::Zeros, Some((last, _))) if before == Some(Kind::Contents) => {
                let memory = last.p_memsz(ENDIAN).saturating_add(length);
                last.p_memsz.set(ENDIAN, memory);
            }
            (Kind::Zeros, _) => pieces.push((piece(segment, start, length), &[])),
            (Kind::Traps, _) => {}
        }
        (rest, start, before) = (after, start + length, Some(kind));
    }
    pieces
}

/// The part of `segment` from `start` on, `length` bytes of memory.
fn piece(segment: &Segment, start: u64, length: u64) -> Segment {
    let mut piece = *segment;
    let moved = |address: u64| address.wrapping_add(start);
    piece.p_vaddr.set(ENDIAN, moved(segment.p_vaddr(ENDIAN)));
    piece.p_paddr.set(ENDIAN, moved(segment.p_paddr(ENDIAN)));
    piece.p_memsz.set(ENDIAN, length);
    piece.p_align.set(ENDIAN, PAGE as u64);
    piece
}

/// The file of `header` and these segments, each at an offset in its page as its address is in its page.
fn write(header: &Header, parts: Vec<(Segment, &[u8])>) -> Vec<u8> {
    let mut contents = vec![0; size_of::<Header>() + parts.len() * size_of::<Segment>()];
    let mut table = bytes_of(header).to_vec();
    for (mut segment, data) in parts {
        if !data.is_empty() {
            let misplaced = segment.p_vaddr(ENDIAN).wrapping_sub(contents.len() as u64);
            let padding = misplaced % PAGE as u64;
            // Less than a page.
            contents.resize(contents.len() + padding as usize, 0);
        }
        segment.p_offset.set(ENDIAN, contents.len() as u64);
        segment.p_filesz.set(ENDIAN, data.len() as u64);
        contents.extend_from_slice(data);
        table.extend_from_slice(bytes_of(&segment));
    }
    contents[..table.len()].copy_from_slice(&table);
    contents
}

#[cfg(test)]
mod tests {
    use object::elf::{PT_NOTE, ProgramType};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// A segment of a made-up kernel: type, physical address, contents, bytes of memory.
    type Made = (ProgramType, u64, Vec<u8>, u64);

    fn kernel(segments: &[Made]) -> Vec<u8> {
        let mut header = *Header::parse(crate::tests_support::executable_image(false).as_slice())
            .expect("an ELF file");
        header.e_phnum = U16::new(ENDIAN, u16::try_from(segments.len()).unwrap());
        let parts = segments.iter().map(|(kind, address, data, memory)| {
            let mut segment: Segment = *object::pod::from_bytes(&[0; size_of::<Segment>()])
                .expect("bytes for a segment")
                .0;
            segment.p_type.set(ENDIAN, *kind);
            segment.p_vaddr.set(ENDIAN, *address);
            segment.p_paddr.set(ENDIAN, *address);
            segment.p_memsz.set(ENDIAN, *memory);
            (segment, data.as_slice())
        });
        write(&header, parts.collect())
    }

    /// The segments of an ELF file, as [`kernel`] takes them.
    fn segments(image: &[u8]) -> Vec<Made> {
        let header = Header::parse(image).unwrap();
        let made = |segment: &Segment| {
            (
                segment.p_type(ENDIAN),
                segment.p_paddr(ENDIAN),
                segment.data(ENDIAN, image).unwrap().to_vec(),
                segment.p_memsz(ENDIAN),
            )
        };
        let table = header.program_headers(ENDIAN, image).unwrap();
        table.iter().map(made).collect()
    }

    /// What is in memory, of `size` bytes, once `image` is loaded into fresh memory.
    fn loaded(image: &[u8], size: usize) -> Vec<u8> {
        let mut memory = vec![0; size];
        for (kind, address, data, _) in segments(image) {
            let at = usize::try_from(address).unwrap();
            if kind == PT_LOAD {
                memory[at..at + data.len()].copy_from_slice(&data);
            }
        }
        memory
    }

    fn filled(runs: &[(u8, usize)]) -> Vec<u8> {
        runs.iter()
            .flat_map(|(byte, length)| vec![*byte; *length])
            .collect()
    }

    #[rstest]
    #[case::nothing_to_cut(&[(1, PAGE)], 4096, &[(0, PAGE, 4096)])]
    #[case::traps_between(&[(1, PAGE), (TRAP, LONG), (2, PAGE)], 0x1_2000, &[(0, PAGE, 4096), (0x1_1000, PAGE, 4096)])]
    #[case::zeros_between(&[(1, PAGE), (0, LONG), (2, PAGE)], 0x1_2000, &[(0, PAGE, 0x1_1000), (0x1_1000, PAGE, 4096)])]
    #[case::short_runs_stay(&[(1, PAGE), (0, LONG - PAGE), (2, PAGE)], 0x1_1000, &[(0, LONG + PAGE, 0x1_1000)])]
    #[case::zeros_first(&[(0, LONG), (2, PAGE)], 0x1_1000, &[(0, 0, 0x1_0000), (0x1_0000, PAGE, 4096)])]
    #[case::zeros_behind_traps(&[(1, PAGE), (TRAP, LONG)], 0x1_2000, &[(0, PAGE, 4096), (0x1_1000, 0, 4096)])]
    #[case::memory_behind_the_file(&[(1, PAGE), (0, LONG)], 0x5_0000, &[(0, PAGE, 0x5_0000)])]
    #[case::another_filling(&[(1, PAGE), (0x90, LONG)], 0x1_1000, &[(0, PAGE + LONG, 0x1_1000)])]
    fn segment_is_cut_where_its_padding_is(
        #[case] contents: &[(u8, usize)],
        #[case] memory: u64,
        #[case] expected: &[(u64, usize, u64)],
    ) {
        let image = kernel(&[(PT_LOAD, 0x100_0000, filled(contents), memory)]);

        let packed = without_padding(&image).unwrap();

        let pieces: Vec<_> = segments(&packed)
            .into_iter()
            .map(|(_, address, data, memory)| (address - 0x100_0000, data.len(), memory))
            .collect();
        assert_eq!(pieces, expected);
    }

    #[test]
    fn note_goes_along_whole() {
        let note = filled(&[(0, LONG)]);
        let image = kernel(&[
            (PT_LOAD, 0, filled(&[(TRAP, LONG), (1, 10)]), 0x1_000a),
            (PT_NOTE, 0x100, note.clone(), LONG as u64),
        ]);

        let packed = without_padding(&image).unwrap();

        assert_eq!(segments(&packed)[1], (PT_NOTE, 0x100, note, LONG as u64));
        assert!(packed.len() < image.len());
    }

    #[test]
    fn what_has_no_padding_is_not_packed_twice() {
        let image = kernel(&[(PT_LOAD, 0x1234, filled(&[(1, 9000), (0, LONG)]), 0x2_0000)]);

        let once = without_padding(&image).unwrap();

        assert_eq!(without_padding(&once).unwrap(), once);
    }

    #[test]
    fn segment_beyond_the_end_is_named() {
        let mut image = kernel(&[(PT_NOTE, 0, vec![1], 1), (PT_LOAD, 0, vec![1; 100], 100)]);
        image.truncate(image.len() - 1);

        let error = without_padding(&image).unwrap_err();

        assert_eq!(
            error.to_string(),
            "segment 1 of the kernel leads beyond the file's end"
        );
    }

    #[test]
    fn file_that_is_no_kernel_is_refused() {
        assert!(matches!(
            without_padding(b"text"),
            Err(PackError::NotElf(_))
        ));
    }

    proptest! {
        #[test]
        fn memory_is_the_same_but_for_traps(
            runs in prop::collection::vec((prop::sample::select(vec![0, 1, TRAP]), 0..3 * LONG), 0..6),
            offset in 0..PAGE,
        ) {
            let contents = filled(&runs);
            let memory = contents.len() as u64 + 100;
            let image = kernel(&[(PT_LOAD, offset as u64, contents, memory)]);

            let packed = without_padding(&image).unwrap();

            let size = usize::try_from(memory).unwrap() + offset;
            let (before, after) = (loaded(&image, size), loaded(&packed, size));
            let differ = before.iter().zip(&after).find(|(before, after)| before != after);
            prop_assert!(matches!(differ, None | Some((&TRAP, &0))), "{:?}", differ);
        }

        #[test]
        fn nothing_that_is_called_a_kernel_makes_it_panic(
            damage in prop::collection::vec((0..120_usize, any::<u8>()), 0..8),
        ) {
            let mut image = kernel(&[(PT_LOAD, 0x1000, filled(&[(1, 10), (0, LONG)]), 0x2_0000)]);
            for (at, byte) in damage {
                image[at] = byte;
            }

            let _ = without_padding(&image);
        }
    }
}
