// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes the ELF kernel (`vmlinux`) out of a `bzImage` (`vmlinuz`).
//!
//! A bzImage unpacks itself, in the guest and at each start. Unpacked once on the host, the kernel starts at its PVH
//! entry point without that work, and the file's pages are shared by all who start it.
//!
//! The layout is that of `Documentation/arch/x86/boot.rst` of the kernel, "The Real-Mode Kernel Header".

use thiserror::Error;

use super::compression::{Compression, CompressionError};

/// The largest kernel that is unpacked. Distribution kernels have 20 to 60 MiB.
const KERNEL_MAX: usize = 256 << 20;

/// Protocol 2.08, the first whose header tells where the payload is.
const OLDEST_PROTOCOL: u16 = 0x0208;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// Why no kernel could be taken out of an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmlinuzError {
    /// The boot flag or the header's magic number is missing.
    #[error("not a bzImage: no boot flag and `HdrS` in its first {SECTOR} bytes and after")]
    NotBzImage,
    /// The image is of a kernel older than 2.6.26.
    #[error("boot protocol {:x}.{:02x} is older than 2.08 and does not tell where the kernel is", protocol >> 8, protocol & 0xff)]
    OldProtocol {
        /// Version of the protocol, major in the high byte.
        protocol: u16,
    },
    /// The image is shorter than its header says.
    #[error("the kernel is at bytes {offset} to {end} of an image that has {size}", end = offset.saturating_add(*length))]
    Truncated {
        /// Where the compressed kernel begins.
        offset: usize,
        /// Length of the compressed kernel in bytes.
        length: usize,
        /// Length of the image in bytes.
        size: usize,
    },
    /// The payload's first bytes are of no compression known here.
    #[error("the kernel is compressed in an unknown way: it begins with {magic:02x?}")]
    UnknownCompression {
        /// The payload's first bytes.
        magic: Vec<u8>,
    },
    /// The payload cannot be decompressed.
    #[error("the kernel cannot be decompressed")]
    Compression(#[from] CompressionError),
    /// The payload has another size than its last four bytes say.
    #[error("the kernel has {actual} bytes instead of {declared}")]
    Size {
        /// What the image says.
        declared: usize,
        /// What was decompressed.
        actual: usize,
    },
    /// What was decompressed is no ELF file.
    #[error("the kernel is not an ELF file: it begins with {magic:02x?}")]
    NotElf {
        /// The first bytes that were decompressed.
        magic: Vec<u8>,
    },
}

/// Takes the ELF kernel out of `image`, the contents of a `vmlinuz`.
///
/// Relocations that the bzImage's own loader would use may follow the ELF file's last section.
///
/// # Errors
///
/// [`VmlinuzError`] says what is wrong with the image.
pub fn extract(image: &[u8]) -> Result<Vec<u8>, VmlinuzError> {
    let payload = payload(image)?;
    let compression =
        Compression::detect(payload).ok_or_else(|| VmlinuzError::UnknownCompression {
            magic: first_bytes(payload),
        })?;
    // Formats that do not end with the decompressed size by themselves, as gzip does, have it appended by the
    // kernel's build.
    let (stream, declared) = payload
        .split_last_chunk::<4>()
        .ok_or(VmlinuzError::NotBzImage)?;
    let declared = u32::from_le_bytes(*declared) as usize;
    let stream = match compression {
        Compression::Gzip => payload,
        _ => stream,
    };
    let kernel = compression.decompress(stream, KERNEL_MAX.min(declared))?;
    if kernel.len() != declared {
        return Err(VmlinuzError::Size {
            declared,
            actual: kernel.len(),
        });
    }
    if !kernel.starts_with(b"\x7fELF") {
        return Err(VmlinuzError::NotElf {
            magic: first_bytes(&kernel),
        });
    }
    Ok(kernel)
}

/// Finds the compressed kernel by the setup header.
fn payload(image: &[u8]) -> Result<&[u8], VmlinuzError> {
    if field(image, BOOT_FLAG)? != [0x55, 0xaa] || &field::<4>(image, HEADER_MAGIC)? != b"HdrS" {
        return Err(VmlinuzError::NotBzImage);
    }
    let protocol = u16::from_le_bytes(field(image, PROTOCOL)?);
    if protocol < OLDEST_PROTOCOL {
        return Err(VmlinuzError::OldProtocol { protocol });
    }
    // 0 stands for 4, for the sake of very old loaders.
    let [setup_sectors] = field(image, SETUP_SECTORS)?;
    let setup_sectors = if setup_sectors == 0 { 4 } else { setup_sectors };
    let protected_mode = (usize::from(setup_sectors) + 1) * SECTOR;
    let offset = u32::from_le_bytes(field(image, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(field(image, PAYLOAD_LENGTH)?) as usize;
    let offset = protected_mode.saturating_add(offset);
    image
        .get(offset..offset.saturating_add(length))
        .ok_or(VmlinuzError::Truncated {
            offset,
            length,
            size: image.len(),
        })
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Result<[u8; N], VmlinuzError> {
    image
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(VmlinuzError::NotBzImage)
}

fn first_bytes(data: &[u8]) -> Vec<u8> {
    data[..data.len().min(6)].to_vec()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const KERNEL: &[u8] = b"\x7fELF and the rest of a kernel";

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// An image with one sector of set-up code and `payload` 16 bytes into the protected-mode code.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR + 16];
        image[SETUP_SECTORS] = 1;
        image[BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER_MAGIC..][..4].copy_from_slice(b"HdrS");
        image[PROTOCOL..][..2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn kernel_is_taken_out() {
        let image = image(&gzip(KERNEL));

        assert_eq!(extract(&image).unwrap(), KERNEL);
    }

    #[test]
    fn format_without_a_size_of_its_own_has_it_appended() {
        let mut payload = vec![
            0x02, 0x21, 0x4c, 0x18, 6, 0, 0, 0, 0x50, 0x7f, b'E', b'L', b'F', b'!',
        ];
        payload.extend_from_slice(&5_u32.to_le_bytes());

        assert_eq!(extract(&image(&payload)).unwrap(), b"\x7fELF!");
    }

    #[rstest]
    #[case::empty(b"".as_slice(), "not a bzImage")]
    #[case::text(b"#!/bin/sh\n".as_slice(), "not a bzImage")]
    #[case::zeroes([0; 4096].as_slice(), "not a bzImage")]
    fn other_files_are_refused(#[case] image: &[u8], #[case] message: &str) {
        let error = extract(image).unwrap_err();

        assert!(error.to_string().starts_with(message), "{error}");
    }

    #[test]
    fn old_protocol_is_named() {
        let mut image = image(&gzip(KERNEL));
        image[PROTOCOL..][..2].copy_from_slice(&0x0207_u16.to_le_bytes());

        let error = extract(&image).unwrap_err();

        assert!(error.to_string().starts_with("boot protocol 2.07 is older"));
    }

    #[test]
    fn payload_past_the_end_is_refused() {
        let mut image = image(&gzip(KERNEL));
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&u32::MAX.to_le_bytes());

        let error = extract(&image).unwrap_err();

        assert!(matches!(
            error,
            VmlinuzError::Truncated { offset: 1040, .. }
        ));
    }

    #[test]
    fn payload_of_another_size_than_declared_is_refused() {
        let mut payload = gzip(KERNEL);
        let end = payload.len() - 4;
        payload[end..].copy_from_slice(&1_000_000_u32.to_le_bytes());

        let error = extract(&image(&payload)).unwrap_err();

        assert!(matches!(error, VmlinuzError::Compression(_)), "{error}");
    }

    #[test]
    fn payload_that_is_no_elf_is_refused() {
        let error = extract(&image(&gzip(b"MZ, of all things"))).unwrap_err();

        assert!(matches!(error, VmlinuzError::NotElf { .. }));
    }

    #[test]
    fn unknown_compression_is_named_by_its_first_bytes() {
        let error = extract(&image(b"BZh91AY")).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the kernel is compressed in an unknown way: it begins with [42, 5a, 68, 39, 31, 41]"
        );
    }

    proptest! {
        #[test]
        fn damaged_image_never_panics(
            position in 0_usize..1200,
            value in any::<u8>(),
            length in 0_usize..1200,
        ) {
            let mut image = image(&gzip(KERNEL));
            if let Some(byte) = image.get_mut(position) {
                *byte = value;
            }
            image.truncate(length);

            let _ = extract(&image);
        }
    }
}
