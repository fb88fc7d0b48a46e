// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The segments to load, checked against the file, against guest memory and against each other.

use coracle_memory::{GuestAddress, GuestMemory, GuestSlice};

use super::error::{KernelError, KernelPart};
use super::headers::check_file_range;
use crate::elf::{self, ProgramHeader};
use crate::image::Image;
use crate::layout::HIGH_RAM;

/// A segment that was checked: its file range is in the file, its memory range in one region.
pub(super) struct Segment<'m> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) loaded: GuestSlice<'m>,
    pub(super) zeroed: GuestSlice<'m>,
}

/// The segments to load, in the order of their addresses.
pub(super) fn check<'m>(
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
    check_file_range(image, KernelPart::Segment(index), offset, file_size)?;
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
