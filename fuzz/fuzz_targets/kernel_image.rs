// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernel images that somebody else made: mostly ELF files that nearly boot, some with broken knobs, some of any bytes.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use coracle_boot::{Boot, MmioDevice, StartState, load};
use coracle_memory::{GuestMemory, layout};
use libfuzzer_sys::fuzz_target;

const MEMORY: u64 = 4 << 20;
const KERNEL_START: u64 = 1 << 20;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

#[derive(Debug, Arbitrary)]
enum Image<'a> {
    Built(Built<'a>),
    Raw(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
struct Built<'a> {
    segments: Vec<Segment<'a>>,
    notes: Vec<Note<'a>>,
    /// Bytes to overwrite, by their place in the file.
    broken: Vec<(u16, u8)>,
    /// Where the file ends early.
    cut: Option<u16>,
}

#[derive(Debug, Arbitrary)]
struct Segment<'a> {
    /// Mostly addresses in memory.
    page: u16,
    address: Option<u64>,
    content: &'a [u8],
    memory_size: u16,
    exact_memory_size: Option<u64>,
}

#[derive(Debug, Arbitrary)]
struct Note<'a> {
    entry: u32,
    /// Instead of a PVH entry.
    other: Option<&'a [u8]>,
}

struct Fixture {
    memory: GuestMemory,
    kernel: File,
    initrd: File,
}

impl Fixture {
    fn new() -> Self {
        Self {
            memory: GuestMemory::anonymous(&layout(MEMORY)).expect("a few MiB"),
            kernel: temporary_file("kernel"),
            initrd: temporary_file("initrd"),
        }
    }

    fn load(&self, image: &[u8]) -> Option<StartState> {
        self.kernel.set_len(0).expect("an empty file");
        self.kernel.write_all_at(image, 0).expect("a small file");
        let boot = Boot {
            kernel: &self.kernel,
            initrd: Some(&self.initrd),
            cmdline: "quiet",
            vcpus: 2,
            mmio: &[MmioDevice {
                base: 0xd000_0000,
                size: 0x1000,
                gsi: 5,
                uid: 0,
            }],
            serial_gsi: Some(4),
        };
        load(&self.memory, &boot).ok()
    }
}

/// A file that has no name any more.
fn temporary_file(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{}", std::process::id()));
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("a temporary file");
    std::fs::remove_file(path).expect("its name");
    file.write_all_at(&[0xaa; 5000], 0).expect("a small file");
    file
}

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

fuzz_target!(|image: Image<'_>| {
    let bytes = match image {
        Image::Built(built) => built.bytes(),
        Image::Raw(bytes) => bytes.to_vec(),
    };
    FIXTURE.with_borrow(|fixture| {
        if let Some(start) = fixture.load(&bytes) {
            assert!((KERNEL_START..MEMORY).contains(&start.rip));
        }
    });
});

impl Built<'_> {
    fn bytes(&self) -> Vec<u8> {
        let parts: Vec<_> = self
            .segments
            .iter()
            .map(Segment::part)
            .chain(self.notes.iter().map(Note::part))
            .collect();
        let mut bytes = elf(&parts);
        for (at, byte) in &self.broken {
            if let Some(target) = bytes.get_mut(usize::from(*at)) {
                *target = *byte;
            }
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut.into());
        }
        bytes
    }
}

/// A program header and its bytes.
struct Part {
    kind: u32,
    address: u64,
    content: Vec<u8>,
    memory_size: u64,
}

impl Segment<'_> {
    fn part(&self) -> Part {
        let size = self.content.len() as u64 + u64::from(self.memory_size);
        Part {
            kind: PT_LOAD,
            address: self
                .address
                .unwrap_or(KERNEL_START + u64::from(self.page % 0x300) * 0x1000),
            content: self.content.to_vec(),
            memory_size: self.exact_memory_size.unwrap_or(size),
        }
    }
}

impl Note<'_> {
    fn part(&self) -> Part {
        let content = match self.other {
            Some(other) => other.to_vec(),
            None => {
                let entry = KERNEL_START + u64::from(self.entry) % (MEMORY - KERNEL_START);
                let mut note = Vec::new();
                for word in [4u32, 8, 18] {
                    note.extend(word.to_le_bytes());
                }
                note.extend(*b"Xen\0");
                note.extend(entry.to_le_bytes());
                note
            }
        };
        Part {
            kind: PT_NOTE,
            address: 0,
            content,
            memory_size: 0,
        }
    }
}

/// File header, program headers, contents.
fn elf(parts: &[Part]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    bytes.extend(1u32.to_le_bytes());
    bytes.extend([0u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(0u32.to_le_bytes());
    let halves = [64, 56, parts.len() as u16, 0, 0, 0];
    bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    let mut offset = 64 + 56 * parts.len() as u64;
    for part in parts {
        let size = part.content.len() as u64;
        bytes.extend(part.kind.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for word in [offset, 0, part.address, size, part.memory_size, 4] {
            bytes.extend(word.to_le_bytes());
        }
        offset += size;
    }
    for part in parts {
        bytes.extend(&part.content);
    }
    bytes
}
