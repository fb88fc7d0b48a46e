// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Dumps of memory without a machine. That gdb reads one is tested with a guest.

use std::os::unix::fs::MetadataExt;

use coracle_memory::GuestAddress;
use rstest::rstest;

use super::*;

fn write(file: &File, memory: &GuestMemory, vcpus: &[Registers]) -> Result<(), DumpError> {
    super::write(file, memory, vcpus, || true)
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn dumped(memory: &GuestMemory, vcpus: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    write(&file, memory, &vec![Registers::default(); vcpus]).unwrap();
    file
}

fn word(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_le_bytes(bytes)
}

/// Offset, address and size of the segment of this number.
fn segment(file: &File, index: u64) -> [u64; 3] {
    let header = 64 + 56 * index;
    [8, 24, 32].map(|field| word(file, header + field))
}

type MakeMemory = fn(&[(GuestAddress, u64)]) -> Result<GuestMemory, coracle_memory::MemoryError>;

#[rstest]
#[case::private(GuestMemory::anonymous)]
#[case::shared(GuestMemory::shared)]
fn memory_is_found_at_its_addresses(#[case] make: MakeMemory) {
    let memory = make(&[(GuestAddress(0), 4 * MIB), (GuestAddress(4 * GIB), 2 * MIB)]).unwrap();
    let written = [
        0,
        0x1234,
        3 * MIB - 4,
        4 * MIB - 8,
        4 * GIB,
        4 * GIB + 2 * MIB - 8,
    ];
    for address in written {
        memory
            .write(GuestAddress(address), &(address + 1).to_le_bytes())
            .unwrap();
    }

    let file = dumped(&memory, 1);

    let loads = [segment(&file, 1), segment(&file, 2)];
    assert_eq!([loads[0][1], loads[0][2]], [0, 4 * MIB]);
    assert_eq!([loads[1][1], loads[1][2]], [4 * GIB, 2 * MIB]);
    for address in written {
        let [offset, start, _] = loads[usize::from(address >= 4 * GIB)];
        assert_eq!(word(&file, offset + address - start), address + 1);
    }
}

#[test]
fn empty_memory_takes_no_room() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(64 * MIB)).unwrap();
    memory.write(GuestAddress(32 * MIB), &[1; 5000]).unwrap();

    let file = dumped(&memory, 2);

    let metadata = file.metadata().unwrap();
    assert!(metadata.len() > 64 * MIB);
    assert!(
        metadata.blocks() * 512 < MIB,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn holes_of_shared_memory_are_not_filled() {
    let memory = GuestMemory::shared(&coracle_memory::layout(64 * MIB)).unwrap();
    memory.write(GuestAddress(32 * MIB), &[1]).unwrap();
    let blocks = || {
        let (file, _) = memory.regions()[0].file().unwrap();
        file.metadata().unwrap().blocks()
    };
    let before = blocks();

    dumped(&memory, 1);

    assert_eq!(blocks(), before);
}

#[test]
fn what_was_in_the_file_is_gone() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0xff; 4 << 20], 0).unwrap();

    write(&file, &memory, &[Registers::default()]).unwrap();

    let [offset, _, size] = segment(&file, 1);
    assert_eq!(file.metadata().unwrap().len(), offset + size);
    assert_eq!(word(&file, offset), 0);
}

/// Linux's note about itself, with a description of this size.
fn vmcoreinfo(size: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [11, size, 0] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"VMCOREINFO\0\0OSRELEASE=6.1.0\n");
    note
}

#[rstest]
#[case::as_linux_writes_it(0x30_0000, vmcoreinfo(16), 12 + 12 + 16)]
#[case::of_a_page(0x30_0000, vmcoreinfo(4096), 12 + 12 + 4096)]
#[case::too_long(0x30_0000, vmcoreinfo(4097), 0)]
#[case::past_the_end_of_memory(0x3f_f000, vmcoreinfo(4096), 0)]
#[case::without_a_size(0x30_0000, vmcoreinfo(0), 0)]
#[case::not_at_a_page(0x30_0010, vmcoreinfo(16), 0)]
#[case::of_something_else(0x30_0000, [&vmcoreinfo(16)[..24], b"HELLO=1"].concat(), 0)]
fn what_linux_says_of_itself_is_a_note(
    #[case] address: u64,
    #[case] note: Vec<u8>,
    #[case] expected: u64,
) {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();
    memory.write(GuestAddress(address), &note).unwrap();

    let file = dumped(&memory, 1);

    let registers = notes::registers(&[Registers::default()]).len() as u64;
    assert_eq!(segment(&file, 0)[2], registers + expected);
}

/// Registers of a kernel that has its image (if asked for) and all memory where Linux has them, by pages of 1 GiB.
fn linux(memory: &GuestMemory, cr3: u64, with_image: bool) -> Registers {
    const LARGE_PAGE: u64 = 0x83;
    let mut entries = vec![(0x1000 + 0x111 * 8, 0x2003), (0x2000, LARGE_PAGE)];
    if with_image {
        entries.extend([
            (0x1000 + 0x1ff * 8, 0x3003),
            (0x3000 + 0x1fe * 8, LARGE_PAGE),
        ]);
    }
    for (address, entry) in entries {
        memory.write_obj(GuestAddress(address), &entry).unwrap();
    }
    let mut registers = Registers::default();
    registers.special.cr0 = 1 << 31;
    registers.special.cr3 = cr3;
    registers.special.cr4 = 1 << 5;
    registers.special.efer = 1 << 10;
    registers
}

#[rstest]
#[case::in_the_kernel(0x1000, true, &[0xffff_ffff_8000_0000, 0xffff_8880_0000_0000, 0xffff_8881_0000_0000])]
#[case::in_a_program_that_has_tables_of_its_own(0x2000, true, &[])]
#[case::of_another_kernel(0x1000, false, &[0xffff_8880_0000_0000, 0xffff_8881_0000_0000])]
fn memory_is_where_linux_has_it(
    #[case] cr3: u64,
    #[case] with_image: bool,
    #[case] expected: &[u64],
) {
    let ranges = [
        (GuestAddress(0), 32 * MIB),
        (GuestAddress(4 * GIB), 2 * MIB),
    ];
    let memory = GuestMemory::anonymous(&ranges).unwrap();
    let registers = linux(&memory, cr3, with_image);
    let file = tempfile::tempfile().unwrap();

    write(&file, &memory, &[registers]).unwrap();

    let mut count = [0; 2];
    file.read_exact_at(&mut count, 56).unwrap();
    let headers: Vec<_> = (1..u64::from(u16::from_le_bytes(count)))
        .map(|index| [8, 16, 24].map(|field| word(&file, 64 + 56 * index + field)))
        .collect();
    let [first, second, linear @ ..] = &headers[..] else {
        panic!("{headers:x?}");
    };
    assert_eq!(
        linear.iter().map(|header| header[1]).collect::<Vec<_>>(),
        expected
    );
    for [offset, address, physical] in linear {
        let region = if *physical == 0 { first } else { second };
        assert_eq!(*offset, region[0], "{address:#x}");
    }
}

#[test]
fn tables_of_a_program_lead_to_those_of_its_kernel() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(32 * MIB)).unwrap();
    let mut registers = linux(&memory, 0x1000, true);
    // The tables of a program lie a page behind the kernel's, which are at an even page.
    for (from, to) in [
        (0x1000 + 0x111 * 8, 0x8000 + 0x111 * 8),
        (0x1000 + 0x1ff * 8, 0x8000 + 0x1ff * 8),
    ] {
        let entry: u64 = memory.read_obj(GuestAddress(from)).unwrap();
        memory.write_obj(GuestAddress(to), &entry).unwrap();
    }
    registers.special.cr3 = 0x9000;

    assert_eq!(linux::windows(&memory, &[registers]).len(), 2);
}

#[test]
fn dump_to_a_pipe_is_refused() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();
    let (_reader, writer) = io::pipe().unwrap();

    let error = write(
        &File::from(std::os::fd::OwnedFd::from(writer)),
        &memory,
        &[],
    )
    .unwrap_err();

    assert!(matches!(error, DumpError::NotRegular), "{error}");
}

#[test]
fn file_that_cannot_be_written_is_told() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(2 * MIB)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    File::create(&path).unwrap();

    let error = write(&File::open(&path).unwrap(), &memory, &[]).unwrap_err();

    assert!(matches!(error, DumpError::Resize { .. }), "{error}");
}

#[test]
fn dump_that_nobody_wants_any_more_is_none() {
    let memory = GuestMemory::anonymous(&coracle_memory::layout(16 * MIB)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut asked = 0;

    let result = super::write(&file, &memory, &[], || {
        asked += 1;
        asked < 3
    });

    assert!(matches!(result, Err(DumpError::Unwanted)), "{result:?}");
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!((asked, magic), (3, [0; 4]));
}
