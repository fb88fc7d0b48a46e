// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels for tests, put together by hand.

use std::fs::File;
use std::io::Write;

use crate::elf::{PT_LOAD, PT_NOTE};

/// A file without a name that holds `content`.
pub(crate) fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// A note in the form of a [`PT_NOTE`] segment aligned to four bytes.
pub(crate) fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, description.len() as u32, kind] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for field in [name, description] {
        bytes.extend_from_slice(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// One program header and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) kind: u32,
    pub(crate) address: u64,
    pub(crate) memory_size: u64,
    pub(crate) content: Vec<u8>,
}

/// A segment of code or data.
pub(crate) fn segment(address: u64, content: &[u8], memory_size: u64) -> Part {
    Part {
        kind: PT_LOAD,
        address,
        memory_size,
        content: content.to_vec(),
    }
}

/// A note segment with the PVH entry `entry`.
pub(crate) fn pvh_note(entry: u64) -> Part {
    notes(&note(b"Xen\0", 18, &entry.to_le_bytes()))
}

/// A note segment of these bytes.
pub(crate) fn notes(content: &[u8]) -> Part {
    Part {
        kind: PT_NOTE,
        address: 0,
        memory_size: 0,
        content: content.to_vec(),
    }
}

/// An ELF file of 64 bits for x86-64: header, program headers, contents in their order.
pub(crate) fn elf(parts: &[Part]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&2u16.to_le_bytes());
    bytes.extend_from_slice(&62u16.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&0u32.to_le_bytes());
    for half in [64, 56, parts.len() as u16, 0, 0, 0] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = 64 + 56 * parts.len() as u64;
    for part in parts {
        let size = part.content.len() as u64;
        bytes.extend_from_slice(&part.kind.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        for word in [offset, 0, part.address, size, part.memory_size, 4] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        offset += size;
    }
    for part in parts {
        bytes.extend_from_slice(&part.content);
    }
    bytes
}
