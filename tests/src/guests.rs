// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that are not ours: kernels and first processes of a few instructions, as ELF files, and initial file systems
//! with another first process.

use std::fs;
use std::path::PathBuf;

use coracle_guest::cpio::Archive;

use crate::host::Host;
use crate::{path_from_environment, tools};

/// Where the code of each is loaded.
const ADDRESS: u32 = 0x10_0000;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// Where a kernel's code starts: it has two segments.
const KERNEL_ENTRY: u32 = ADDRESS + (HEADER + 2 * PROGRAM_HEADER) as u32;

/// `jmp .`
const STAY: &[u8] = &[0xeb, 0xfe];
/// `mov al, 0xfe; out 0x64, al; hlt`: asks the keyboard controller for a reset.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// `mov dx, 0x3f8; mov al, 'x'; out dx, al`, in 32-bit and 64-bit code alike.
const SPEAK: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee];
/// `mov eax, 172; mov edi, 3; syscall`: `iopl(3)`, without which a process may not use ports.
const ALLOW_PORTS: &[u8] = &[0xb8, 172, 0, 0, 0, 0xbf, 3, 0, 0, 0, 0x0f, 0x05];

/// A kernel that loops for ever and says nothing.
#[must_use]
pub fn endless() -> Vec<u8> {
    kernel(STAY)
}

/// A kernel that resets the machine at once.
#[must_use]
pub fn resetting() -> Vec<u8> {
    kernel(RESET)
}

/// A kernel that faults without anything to handle that, nor the fault of handling it: a triple fault.
#[must_use]
pub fn triple_faulting() -> Vec<u8> {
    // `lidt [table]; int3; table: 0, 0`
    let table = (KERNEL_ENTRY + 8).to_le_bytes();
    kernel(&[&[0x0f, 0x01, 0x1d][..], &table, &[0xcc], &[0; 6]].concat())
}

/// A kernel that writes an `x` to the serial port, then resets the machine.
#[must_use]
pub fn speaking() -> Vec<u8> {
    kernel(&[SPEAK, RESET].concat())
}

/// A first process for a real kernel: it writes an `x` to the serial port, then resets the machine.
#[must_use]
pub fn speaking_init() -> Vec<u8> {
    let code = [ALLOW_PORTS, SPEAK, RESET, STAY].concat();
    elf(&code, &[(LOAD, code.len())], &[])
}

/// The kernel that guests start from here, and its initial file system: the small kernel where it is built.
#[must_use]
pub fn ours() -> [PathBuf; 2] {
    let guest = path_from_environment("CORACLE_GUEST");
    let small = guest.join("small");
    let directory = if small.is_dir() { small } else { guest };
    ["vmlinux", "initramfs.cpio"].map(|name| directory.join(name))
}

/// The agent's executable, out of the initial file system.
#[must_use]
pub fn agent(host: &Host) -> Vec<u8> {
    let ours = path_from_environment("CORACLE_GUEST").join("initramfs.cpio");
    let folder = host.folder("initramfs");
    let script = "cd \"$1\" && busybox cpio -i init <\"$2\" 2>/dev/null";
    let [to, from] = [&folder, &ours].map(|path| path.display().to_string());
    tools::run("sh", &["-c", script, "sh", &to, &from]);
    fs::read(folder.join("init")).expect("an initial file system has a first process")
}

/// An initial file system: our own, with its modules, but with `init` for a first process, busybox to interpret it, and
/// `files` besides.
///
/// # Panics
///
/// Panics where the guest's or busybox's file cannot be read.
#[must_use]
pub fn initramfs_with(init: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let ours = path_from_environment("CORACLE_GUEST").join("initramfs.cpio");
    let busybox = fs::read("/bin/busybox").expect("the host has a static busybox");
    // Of two archives in a row, the kernel takes each file from the last that has it.
    let mut archive = Archive::new(fs::read(ours).expect("the guest has been built"));
    let programs = [("bin/busybox", &busybox[..]), ("init", init)];
    archive.directory("bin", 0o755).expect("memory takes files");
    for (path, contents) in programs.iter().chain(files) {
        archive
            .file(path, 0o755, contents)
            .expect("memory takes files");
    }
    archive.finish().expect("memory takes files")
}

/// An initial file system without a first process.
#[must_use]
pub fn initramfs_without_init() -> Vec<u8> {
    Archive::new(Vec::new())
        .finish()
        .expect("memory takes files")
}

/// A 64-bit ELF with `code` and a note that names its start as the PVH entry.
fn kernel(code: &[u8]) -> Vec<u8> {
    let note: Vec<u8> = [
        &4u32.to_le_bytes()[..],  // length of the name
        &4u32.to_le_bytes()[..],  // length of the value
        &18u32.to_le_bytes()[..], // XEN_ELFNOTE_PHYS32_ENTRY
        b"Xen\0",
        &KERNEL_ENTRY.to_le_bytes()[..],
    ]
    .concat();
    elf(code, &[(LOAD, code.len()), (NOTE, note.len())], &note)
}

/// An executable whose segments, each of a type and a length, follow one another in the file. The
/// first is `code`; its page in memory also holds the headers before it.
fn elf(code: &[u8], segments: &[(u32, usize)], rest: &[u8]) -> Vec<u8> {
    let mut offset = HEADER + PROGRAM_HEADER * segments.len() as u64;
    let entry = u64::from(ADDRESS) + offset;
    let mut file = [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        [2u16, 62].map(u16::to_le_bytes).concat(), // executable, x86-64
        1u32.to_le_bytes().to_vec(),
        [entry, HEADER, 0].map(u64::to_le_bytes).concat(),
        0u32.to_le_bytes().to_vec(),
        [
            64u16,
            56,
            u16::try_from(segments.len()).unwrap_or(0),
            0,
            0,
            0,
        ]
        .map(u16::to_le_bytes)
        .concat(),
    ]
    .concat();
    for (kind, length) in segments {
        let address = u64::from(ADDRESS) + offset;
        let length = *length as u64;
        file.extend(kind.to_le_bytes());
        file.extend(5u32.to_le_bytes()); // readable, executable
        file.extend(
            [offset, address, address, length, length, 1]
                .map(u64::to_le_bytes)
                .concat(),
        );
        offset += length;
    }
    [file, code.to_vec(), rest.to_vec()].concat()
}
