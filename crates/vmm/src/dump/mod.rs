// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A core dump of the guest: an ELF file with its memory and the registers of its vCPUs, as `crash`, gdb and
//! makedumpfile read it.
//!
//! It has the form that QEMU's `dump-guest-memory` made common: a note segment ([`notes`]), and a segment for each
//! region of guest memory, at its physical address and where a Linux kernel has it ([`linux`]). Pages of zeroes are holes of
//! the file. A Linux guest's own description of itself (VMCOREINFO), which these programs need for a kernel that was moved,
//! is found in its memory.

mod elf;
mod linux;
mod notes;
mod pages;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use coracle_memory::{AccessError, GuestMemory};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::vcpu::Registers;
use elf::{FileHeader, ProgramHeader};
use linux::Window;
use pages::Pages;

/// Memory begins in the file at a multiple of this, so that pages are pages there too.
const ALIGN: u64 = 4096;

/// Why the guest cannot be dumped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The descriptor cannot be examined.
    #[error("the file cannot be examined")]
    Examine(#[source] io::Error),
    /// A pipe, a socket or a device.
    #[error("it can be written to a regular file only")]
    NotRegular,
    /// The disk is full, or the file not open for writing.
    #[error("{length} bytes at offset {offset:#x} cannot be written")]
    Write {
        /// Where in the file.
        offset: u64,
        /// How much.
        length: usize,
        /// The reason.
        source: io::Error,
    },
    /// The file cannot be made as long as guest memory.
    #[error("the file cannot be made {size:#x} bytes long")]
    Resize {
        /// How long.
        size: u64,
        /// The reason.
        source: io::Error,
    },
    /// It was given up, whoever asked for it is gone, or the machine ends.
    #[error("nobody wants it any more")]
    Unwanted,
    /// Guest memory cannot be read.
    #[error("guest memory cannot be read")]
    Read(#[source] AccessError),
}

/// Writes the guest's memory and the registers of its vCPUs to `file`, instead of what is there. Asks often whether the
/// dump is still wanted; if not, the file is none.
pub(crate) fn write(
    file: &File,
    memory: &GuestMemory,
    vcpus: &[Registers],
    mut is_wanted: impl FnMut() -> bool,
) -> Result<(), DumpError> {
    let metadata = file.metadata().map_err(DumpError::Examine)?;
    if !metadata.is_file() {
        return Err(DumpError::NotRegular);
    }
    let mut notes = notes::registers(vcpus);
    let windows = linux::windows(memory, vcpus);
    let layout = Layout::new(memory, windows, notes.len() as u64 + notes::VMCOREINFO_ROOM);
    for size in [0, layout.end] {
        file.set_len(size)
            .map_err(|source| DumpError::Resize { size, source })?;
    }
    let mut vmcoreinfo = None;
    for (region, offset) in memory.regions().iter().zip(&layout.memory) {
        let mut show = |page: u64, content: &[u8]| {
            if vmcoreinfo.is_none() && notes::is_vmcoreinfo(content) {
                vmcoreinfo = notes::vmcoreinfo(memory, page);
            }
        };
        let mut pages = Pages::new(memory, region);
        while pages.write_block(file, *offset, &mut show)? {
            if !is_wanted() {
                return Err(DumpError::Unwanted);
            }
        }
    }
    notes.extend(vmcoreinfo.unwrap_or_default());
    write_at(file, 0, &layout.headers(memory, notes.len() as u64))?;
    write_at(file, layout.notes, &notes)
}

/// Where the parts of the file are.
struct Layout {
    notes: u64,
    /// The beginning of each region.
    memory: Vec<u64>,
    windows: Vec<Window>,
    end: u64,
}

impl Layout {
    fn new(memory: &GuestMemory, windows: Vec<Window>, notes_room: u64) -> Self {
        let count = 1 + memory.regions().len() * (1 + windows.len());
        let notes = (size_of::<FileHeader>() + count * size_of::<ProgramHeader>()) as u64;
        let mut end = (notes + notes_room).next_multiple_of(ALIGN);
        let memory = memory
            .regions()
            .iter()
            .map(|region| {
                let offset = end;
                // A sum of sizes that are mapped in this process.
                end = end.saturating_add(region.len());
                offset
            })
            .collect();
        Self {
            notes,
            memory,
            windows,
            end,
        }
    }

    fn headers(&self, memory: &GuestMemory, notes_size: u64) -> Vec<u8> {
        let regions = || memory.regions().iter().zip(&self.memory);
        let physical = regions().map(|(region, offset)| {
            let start = region.start().0;
            ProgramHeader::load(*offset, start, start, region.len())
        });
        let linear = self.windows.iter().flat_map(|window| {
            regions().filter_map(|(region, offset)| {
                let start = region.start().0;
                let room = window.size.checked_sub(start)?;
                let linear = window.linear.checked_add(start)?;
                let size = region.len().min(room);
                (size > 0).then(|| ProgramHeader::load(*offset, linear, start, size))
            })
        });
        let headers: Vec<_> = std::iter::once(ProgramHeader::notes(self.notes, notes_size))
            .chain(physical)
            .chain(linear)
            .collect();
        // Guest memory has two regions, or a few.
        let count = u16::try_from(headers.len()).unwrap_or(u16::MAX);
        [
            FileHeader::core(count).as_bytes(),
            headers.as_slice().as_bytes(),
        ]
        .concat()
    }
}

fn write_at(file: &File, offset: u64, bytes: &[u8]) -> Result<(), DumpError> {
    file.write_all_at(bytes, offset)
        .map_err(|source| DumpError::Write {
            offset,
            length: bytes.len(),
            source,
        })
}

#[cfg(test)]
mod tests;
