// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Small ELF files, made to measure.

/// A relocatable ELF file whose `.modinfo` says that it depends on `depends`.
pub fn module_image(depends: &str) -> Vec<u8> {
    module_image_with(&format!("depends={depends}"))
}

/// A relocatable ELF file whose `.modinfo` has these fields, separated by NULs.
pub fn module_image_with(fields: &str) -> Vec<u8> {
    let modinfo = format!("license=GPL\0{fields}\0name=test\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let modinfo_at = 64_u64;
    let names_at = modinfo_at + modinfo.len() as u64;
    let sections_at = (names_at + names.len() as u64).next_multiple_of(8);

    let mut image = header(1, 0, sections_at, 3, 2);
    image.extend_from_slice(modinfo.as_bytes());
    image.extend_from_slice(names);
    image.resize(sections_at.try_into().unwrap(), 0);
    image.extend_from_slice(&[0; 64]);
    image.extend_from_slice(&section(1, 1, modinfo_at, modinfo.len() as u64));
    image.extend_from_slice(&section(10, 3, names_at, names.len() as u64));
    image
}

/// `image` with a signature of `length` bytes, of which it says that they are `claimed`.
pub fn signed(image: &[u8], length: usize, claimed: u32) -> Vec<u8> {
    let mut image = image.to_vec();
    // The signature, and the first eight of twelve bytes about it.
    image.resize(image.len() + length + 8, 7);
    image.extend_from_slice(&claimed.to_be_bytes());
    image.extend_from_slice(b"~Module signature appended~\n");
    image
}

/// An executable ELF file with one segment, which names an interpreter if `dynamic`.
pub fn executable_image(dynamic: bool) -> Vec<u8> {
    let mut image = header(2, 1, 0, 0, 0);
    let kind: u32 = if dynamic { 3 } else { 1 };
    image.extend_from_slice(&kind.to_le_bytes());
    image.extend_from_slice(&[0; 52]);
    image
}

fn header(kind: u16, segments: u16, sections_at: u64, sections: u16, names: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend_from_slice(&kind.to_le_bytes());
    header.extend_from_slice(&62_u16.to_le_bytes());
    header.extend_from_slice(&1_u32.to_le_bytes());
    header.extend_from_slice(&0_u64.to_le_bytes());
    let segments_at: u64 = if segments == 0 { 0 } else { 64 };
    header.extend_from_slice(&segments_at.to_le_bytes());
    header.extend_from_slice(&sections_at.to_le_bytes());
    header.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64, 56, segments, 64, sections, names] {
        header.extend_from_slice(&half.to_le_bytes());
    }
    header
}

fn section(name: u32, kind: u32, at: u64, size: u64) -> Vec<u8> {
    let mut section = Vec::with_capacity(64);
    section.extend_from_slice(&name.to_le_bytes());
    section.extend_from_slice(&kind.to_le_bytes());
    for field in [0, 0, at, size, 0, 1, 0] {
        section.extend_from_slice(&field.to_le_bytes());
    }
    section
}
