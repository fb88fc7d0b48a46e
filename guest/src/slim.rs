// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes out of a kernel module what costs a guest time at each start and serves nobody there.
//!
//! - Its **signature**. The kernel would hash the module and verify an RSA signature: seven million instructions for the
//!   smallest module. It proves nothing here, as whoever hands in the initramfs hands in the kernel and the agent too.
//!   An unsigned module taints the kernel, no more; a kernel that loads only signed ones (`module.sig_enforce`, lockdown)
//!   needs them as they are.
//! - Its **types** (BTF). The kernel would parse and index them for BPF programs that trace the module.
//!
//! Nothing is moved, so that nothing that refers to anything has to change: the section of the types is merely said
//! to be empty.

use std::mem::{offset_of, size_of};

use object::Endianness;
use object::elf::{FileHeader64, SectionHeader64};
use object::read::elf::FileHeader;

/// What ends a signed module, after the signature and [`SIGNATURE_INFO`] bytes about it.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// Size of the kernel's `struct module_signature`, whose last four bytes are the signature's length, big-endian.
const SIGNATURE_INFO: usize = 12;

/// The section that holds a module's types.
const TYPES: &[u8] = b".BTF";

/// Takes the signature and the types out of `image`, a module's ELF file, where it has them.
///
/// # Errors
///
/// It is no ELF file of this architecture.
pub fn slim(image: &mut Vec<u8>) -> Result<(), object::Error> {
    image.truncate(length_without_signature(image));
    let sizes = sizes_of_types(image)?;
    for size in sizes {
        // Where a header was read, there are its bytes.
        if let Some(bytes) = image.get_mut(size..size + size_of::<u64>()) {
            bytes.fill(0);
        }
    }
    Ok(())
}

/// How long `image` was before a signature was appended to it, if one was.
fn length_without_signature(image: &[u8]) -> usize {
    let unsigned = || {
        let (signed, info) = image
            .strip_suffix(SIGNATURE_MAGIC)?
            .split_last_chunk::<SIGNATURE_INFO>()?;
        let (_, length) = info.split_last_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        signed.len().checked_sub(length)
    };
    unsigned().unwrap_or(image.len())
}

/// Where in `image` the sizes of sections are that hold types.
fn sizes_of_types(image: &[u8]) -> Result<Vec<usize>, object::Error> {
    let header = FileHeader64::<Endianness>::parse(image)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, image)?;
    let table = usize::try_from(header.e_shoff(endian)).unwrap_or(usize::MAX);
    let mut sizes = Vec::new();
    for (index, section) in sections.enumerate() {
        if sections.section_name(endian, section)? == TYPES {
            // The table was read from where it is said to be, so none of this is beyond the file's end.
            sizes.push(
                table
                    + index.0 * size_of::<SectionHeader64<Endianness>>()
                    + offset_of!(SectionHeader64<Endianness>, sh_size),
            );
        }
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use object::read::elf::SectionHeader;

    use super::*;
    use crate::tests_support::{module_image, signed};

    fn size_of_section(image: &[u8], name: &[u8]) -> u64 {
        let header = FileHeader64::<Endianness>::parse(image).unwrap();
        let endian = header.endian().unwrap();
        let sections = header.sections(endian, image).unwrap();
        let (_, section) = sections.section_by_name(endian, name).unwrap();
        section.sh_size(endian)
    }

    #[test]
    fn signature_is_cut_off() {
        let image = module_image("");
        let mut slimmed = signed(&image, 400, 400);

        slim(&mut slimmed).unwrap();

        assert_eq!(slimmed, image);
    }

    #[test]
    fn module_without_signature_and_types_stays_as_it_is() {
        let mut image = module_image("virtio");

        slim(&mut image).unwrap();

        assert_eq!(image, module_image("virtio"));
    }

    #[test]
    fn signature_longer_than_the_file_is_none() {
        let image = signed(&module_image(""), 400, u32::MAX);

        assert_eq!(length_without_signature(&image), image.len());
    }

    #[test]
    fn section_of_types_becomes_empty_and_no_other() {
        let plain = module_image("");
        // The name of the first section, in the table of names.
        let name = plain
            .windows(9)
            .position(|bytes| bytes == b".modinfo\0")
            .unwrap();
        let mut image = plain.clone();
        image[name..name + 5].copy_from_slice(b".BTF\0");

        slim(&mut image).unwrap();

        assert_eq!(size_of_section(&image, b".BTF"), 0);
        assert_eq!(
            size_of_section(&image, b".shstrtab"),
            size_of_section(&plain, b".shstrtab")
        );
        assert_eq!(image.len(), plain.len());
    }

    #[test]
    fn file_that_is_no_module_is_refused() {
        assert!(slim(&mut b"text".to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_is_called_a_module_makes_it_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            claimed in any::<u32>(),
        ) {
            let mut image = signed(&module_image("a"), 8, claimed);
            for (index, byte) in damage {
                let at = index.index(image.len());
                image[at] = byte;
            }

            let _ = slim(&mut image);
        }
    }
}
