// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a kernel.

use coracle_memory::AccessError;
use thiserror::Error;

use super::headers::MAX_PROGRAM_HEADERS;
use super::pvh::MAX_NOTES;
use crate::elf::ProgramHeader;
use crate::image::ReadError;
use crate::layout::HIGH_RAM;

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
        "the kernel image is neither an ELF file nor a bzImage: it begins with the bytes {}",
        hex(magic)
    )]
    NotElf {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// A compressed kernel, which this crate unpacks only with its feature `compressed`.
    #[error("the kernel image is a compressed bzImage; the ELF vmlinux inside it is needed")]
    BzImage,
    /// A compressed kernel that nobody has.
    #[cfg(feature = "compressed")]
    #[error("the bzImage has {size:#x} bytes; {max:#x} are accepted", max = super::bzimage::MAX_SIZE)]
    BzImageTooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// A compressed kernel that is damaged, or compressed in another way.
    #[cfg(feature = "compressed")]
    #[error("the bzImage cannot be unpacked")]
    Unpack(#[from] crate::compressed::vmlinuz::VmlinuzError),
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
        what: KernelPart,
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
pub enum KernelPart {
    /// The program header table.
    ProgramHeaders,
    /// The segment of this place in the table.
    Segment(usize),
}

impl std::fmt::Display for KernelPart {
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
