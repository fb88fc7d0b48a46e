// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of ELF (System V ABI for AMD64) that a core file is made of.

use zerocopy::{Immutable, IntoBytes};

/// A segment of memory.
const PT_LOAD: u32 = 1;
/// A segment of notes.
const PT_NOTE: u32 = 4;
/// `e_type` of a core file.
const ET_CORE: u16 = 4;
/// `e_machine` of x86-64.
const MACHINE_X86_64: u16 = 62;

/// `Elf64_Ehdr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct FileHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
    section_header_size: u16,
    section_header_count: u16,
    section_names: u16,
}

impl FileHeader {
    /// That of a core file, with its program headers behind it.
    pub(super) fn core(program_header_count: u16) -> Self {
        Self {
            // 64 bits, little-endian, version 1.
            ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            kind: ET_CORE,
            machine: MACHINE_X86_64,
            version: 1,
            entry: 0,
            program_headers: size_of::<Self>() as u64,
            section_headers: 0,
            flags: 0,
            header_size: size_of::<Self>() as u16,
            program_header_size: size_of::<ProgramHeader>() as u16,
            program_header_count,
            section_header_size: 0,
            section_header_count: 0,
            section_names: 0,
        }
    }
}

/// `Elf64_Phdr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl ProgramHeader {
    /// Notes.
    pub(super) fn notes(offset: u64, size: u64) -> Self {
        Self::new(PT_NOTE, offset, 0, 0, size)
    }

    /// Memory. Of the whole machine's, physical addresses stand for virtual ones.
    pub(super) fn load(
        offset: u64,
        virtual_address: u64,
        physical_address: u64,
        size: u64,
    ) -> Self {
        Self::new(PT_LOAD, offset, virtual_address, physical_address, size)
    }

    /// A segment that is in the file whole. Its alignment of 0 tells `crash` that this is a dump of all memory.
    fn new(kind: u32, offset: u64, virtual_address: u64, physical_address: u64, size: u64) -> Self {
        Self {
            kind,
            flags: 0,
            offset,
            virtual_address,
            physical_address,
            file_size: size,
            memory_size: size,
            align: 0,
        }
    }
}
