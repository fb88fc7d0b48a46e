// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An ELF kernel with a PVH entry, and what it is told at its start.

use std::fs::File;
use std::io::Error;
use std::os::unix::fs::FileExt;

use crate::memory::Memory;

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PVH_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;

/// Loads `file` and returns its PVH entry.
pub fn load(memory: &Memory, file: &File) -> Result<u64, Error> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let table = u64_at(&header, 32);
    let entry_size = u64::from(u16_at(&header, 54));
    let mut entry = Err(Error::other("the kernel has no PVH entry"));
    for index in 0..u64::from(u16_at(&header, 56)) {
        let mut program = [0; 56];
        file.read_exact_at(&mut program, table + index * entry_size)?;
        let (offset, address, size) = (
            u64_at(&program, 8),
            u64_at(&program, 24),
            u64_at(&program, 32),
        );
        let length = usize::try_from(size).map_err(Error::other)?;
        match u32_at(&program, 0) {
            LOAD => memory.read_from(address, file, offset, length)?,
            NOTE => {
                let mut notes = vec![0; length];
                file.read_exact_at(&mut notes, offset)?;
                entry = find_entry(&notes)
                    .ok_or_else(|| Error::other("the kernel's notes name no PVH entry"));
            }
            _ => {}
        }
    }
    entry
}

/// Loads the initial file system at the end of memory; returns its address and length.
pub fn load_initrd(memory: &Memory, file: &File) -> Result<(u64, u64), Error> {
    let length = file.metadata()?.len();
    let address = (memory.len() as u64 - length) & !0xfff;
    memory.read_from(
        address,
        file,
        0,
        usize::try_from(length).map_err(Error::other)?,
    )?;
    Ok((address, length))
}

/// Writes `hvm_start_info`, its memory map and its module list at `at`.
pub fn write_start_info(
    memory: &Memory,
    at: u64,
    command_line: u64,
    rsdp: u64,
    module: Option<(u64, u64)>,
) {
    let (map, modules) = (at + 0x100, at + 0x200);
    let info = [
        u64::from(START_MAGIC) | (1 << 32), // magic, version
        u64::from(module.is_some()) << 32,  // flags, count of modules
        modules,                            // list of modules
        command_line,
        rsdp,
        map, // memory map
        2,   // its entries, reserved
    ];
    write_words(memory, at, &info);
    let end = memory.len() as u64;
    // RAM below the BIOS area, and from 1 MiB on: address, size, type (1: RAM).
    write_words(
        memory,
        map,
        &[0, 0x9_fc00, 1, 0x10_0000, end - 0x10_0000, 1],
    );
    if let Some((address, length)) = module {
        write_words(memory, modules, &[address, length, 0, 0]);
    }
}

fn write_words(memory: &Memory, at: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(at, &bytes);
}

fn find_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let name = u32_at(notes, 0).next_multiple_of(4) as usize;
        let value = u32_at(notes, 4).next_multiple_of(4) as usize;
        if u32_at(notes, 8) == PVH_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
            return Some(u64::from(u32_at(notes.get(12 + name..)?, 0)));
        }
        notes = notes.get(12 + name + value..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | (u32::from(u16_at(bytes, at + 2)) << 16)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}
