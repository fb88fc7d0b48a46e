// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel images are files that a user names: whatever they hold, taking the kernel out ends, within its bounds.
//!
//! Images from scratch would rarely get past the header, so what is fuzzed is the payload, behind a header that holds.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Image {
    setup_sectors: u8,
    protocol: u16,
    payload_offset: u16,
    payload_length: Option<u32>,
    magic: Magic,
    payload: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Magic {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    AsIs,
}

impl Image {
    fn bytes(&self) -> Vec<u8> {
        let magic: &[u8] = match self.magic {
            Magic::Gzip => &[0x1f, 0x8b, 8],
            Magic::Xz => &[0xfd, b'7', b'z', b'X', b'Z', 0],
            Magic::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
            Magic::Lz4 => &[0x02, 0x21, 0x4c, 0x18],
            Magic::AsIs => &[],
        };
        let length = u32::try_from(magic.len() + self.payload.len()).unwrap_or(u32::MAX);
        let sectors = if self.setup_sectors == 0 {
            4
        } else {
            usize::from(self.setup_sectors)
        };
        let mut image = vec![0; (sectors + 1) * 512 + usize::from(self.payload_offset)];
        image.resize(image.len().max(0x250), 0);
        image[0x1f1] = self.setup_sectors;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&self.protocol.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&u32::from(self.payload_offset).to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&self.payload_length.unwrap_or(length).to_le_bytes());
        image.extend_from_slice(magic);
        image.extend_from_slice(&self.payload);
        image
    }
}

fuzz_target!(|image: Image| {
    if let Ok(kernel) = coracle_guest::vmlinuz::extract(&image.bytes()) {
        assert!(kernel.starts_with(b"\x7fELF"));
    }
});
