// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tiny guests: a few instructions of 32-bit protected mode in an ELF file that boots by PVH.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod driver;
pub mod harness;
pub mod process;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use coracle_vmm::Config;

/// Where the code is loaded.
pub const ENTRY: u32 = 0x10_0000;

/// A kernel of these instructions.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note: Vec<u8> = [4u32, 4, 18]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(*b"Xen\0")
        .chain(ENTRY.to_le_bytes())
        .collect();
    let code_offset = HEADERS + note.len() as u64;

    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    image.extend(1u32.to_le_bytes());
    image.extend([0u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(0u32.to_le_bytes());
    image.extend(
        [64u16, 56, 2, 0, 0, 0]
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    let mut header = |kind: u32, offset: u64, address: u64, size: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        for word in [offset, 0, address, size, size, 4] {
            image.extend(word.to_le_bytes());
        }
    };
    header(4, HEADERS, 0, note.len() as u64);
    header(1, code_offset, ENTRY.into(), code.len() as u64);
    image.extend(note);
    image.extend(code);
    image
}

/// A file without a name that holds `content`.
pub fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// The smallest machine that runs `code`.
pub fn config(code: &[u8]) -> Config<OwnedFd> {
    Config {
        vcpus: 1,
        memory_mib: 16,
        kernel: file(&kernel(code)).into(),
        initrd: None,
        cmdline: String::new(),
        console_log: None,
        serial_log: None,
        fs: Vec::new(),
        vsock: None,
        rng: false,
        network: None,
    }
}

/// Instructions.
pub mod code {
    /// `mov $value, %al; mov $port, %dx; out %al, (%dx)`
    pub fn out(port: u16, value: u8) -> Vec<u8> {
        let [low, high] = port.to_le_bytes();
        vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
    }

    /// `mov $port, %dx; in (%dx), %al`
    pub fn input(port: u16) -> Vec<u8> {
        let [low, high] = port.to_le_bytes();
        vec![0x66, 0xba, low, high, 0xec]
    }

    /// `mov $port, %dx; out %al, (%dx)`
    pub fn out_al(port: u16) -> Vec<u8> {
        let [low, high] = port.to_le_bytes();
        vec![0x66, 0xba, low, high, 0xee]
    }

    /// `mov address, %eax`
    pub fn load(address: u32) -> Vec<u8> {
        [&[0xa1][..], &address.to_le_bytes()].concat()
    }

    /// `movl $value, address`
    pub fn store(address: u32, value: u32) -> Vec<u8> {
        [
            &[0xc7, 0x05][..],
            &address.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat()
    }

    /// `shr $8, %eax`
    pub const NEXT_BYTE: [u8; 3] = [0xc1, 0xe8, 8];

    /// `jmp .`
    pub const SPIN: [u8; 2] = [0xeb, 0xfe];

    /// `cli; hlt`
    pub const HALT: [u8; 2] = [0xfa, 0xf4];

    /// `lidt` of a table of no entries (a pointer of zeroes in memory that nothing wrote), then `ud2`.
    pub const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0, 0, 0x40, 0, 0x0f, 0x0b];

    /// Writes the four bytes of `%eax` to COM1, lowest first.
    pub fn print_eax() -> Vec<u8> {
        let print = out_al(0x3f8);
        let print_next = [&NEXT_BYTE[..], &print].concat();
        [&print[..], &print_next, &print_next, &print_next].concat()
    }

    /// Turns the machine off.
    pub fn power_off() -> Vec<u8> {
        out(0x600, 0x34)
    }
}
