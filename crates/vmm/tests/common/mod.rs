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

/// The same kernel as distributions ship theirs: a bzImage, compressed by gzip.
pub fn compressed_kernel(code: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&kernel(code)).unwrap();
    let payload = encoder.finish().unwrap();
    // The set-up code of one sector and its header.
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
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
    Config::new(1, 16, file(&kernel(code)).into())
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

    /// Wakes all other vCPUs, at `code` in real mode; it is put at [`AP_ENTRY`].
    pub fn wake_others(code: &[u8]) -> Vec<u8> {
        const COMMAND: u32 = 0xfee0_0300;
        const INIT: u32 = 0xc_4500;
        const STARTUP: u32 = 0xc_4600;
        let code = (AP_ENTRY..)
            .step_by(4)
            .zip(code.chunks(4))
            .flat_map(|(address, word)| {
                let mut bytes = [0; 4];
                bytes[..word.len()].copy_from_slice(word);
                store(address, u32::from_le_bytes(bytes))
            })
            .collect();
        [
            code,
            store(COMMAND, INIT),
            store(COMMAND, STARTUP | AP_ENTRY >> 12),
        ]
        .concat()
    }

    /// Where other vCPUs start.
    pub const AP_ENTRY: u32 = 0x8000;
    /// What [`COUNT_ME`] counts.
    pub const COUNT: u32 = 0x7000;

    /// Real mode: writes this vCPU's number to COM1, `lock incw COUNT`, `cli; hlt`.
    pub const COUNT_ME: [u8; 27] = [
        // mov $1, %eax; cpuid; shr $24, %ebx
        0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xeb, 24,
        // mov %bl, %al; mov $0x3f8, %dx; out %al, (%dx)
        0x88, 0xd8, 0xba, 0xf8, 0x03, 0xee, //
        0xf0, 0xff, 0x06, 0x00, 0x70, //
        0xfa, 0xf4, 0xeb, 0xfc,
    ];

    /// Real mode: enters protected mode with the segments that [`segments`] has put there, for the code that follows.
    pub const ENTER_PROTECTED_MODE: [u8; 27] = [
        // lgdt 0x7010
        0x0f, 0x01, 0x16, 0x10, 0x70, //
        // mov %cr0, %eax; or $1, %al; mov %eax, %cr0
        0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, //
        // ljmp $8, $AP_ENTRY + 21
        0x66, 0xea, 0x15, 0x80, 0, 0, 8, 0, //
        // mov $16, %ax; mov %ax, %ds
        0x66, 0xb8, 16, 0, 0x8e, 0xd8,
    ];

    /// Puts a table of flat segments where [`ENTER_PROTECTED_MODE`] looks for it.
    pub fn segments() -> Vec<u8> {
        [
            (0x7010, 0x7020 << 16 | 0x17),
            (0x7028, 0xffff),
            (0x702c, 0xcf_9b00),
            (0x7030, 0xffff),
            (0x7034, 0xcf_9300),
        ]
        .into_iter()
        .flat_map(|(address, value)| store(address, value))
        .collect()
    }

    /// `1: cmpw $count, COUNT; jne 1b`
    pub fn wait_for_count(count: u16) -> Vec<u8> {
        let [low, high] = count.to_le_bytes();
        [
            &[0x66, 0x81, 0x3d][..],
            &COUNT.to_le_bytes(),
            &[low, high, 0x75, 0xf5],
        ]
        .concat()
    }

    /// Jumps to where neither memory nor a device is.
    pub const JUMP_NOWHERE: [u8; 7] = [0xb8, 0, 0, 0, 0xe0, 0xff, 0xe0];

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
