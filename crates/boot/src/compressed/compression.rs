// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The compressions that distributions use for kernels and modules, recognised by their first bytes.
//!
//! What is decompressed here comes with a kernel that somebody names on a command line. It must neither crash the
//! builder nor fill the memory, so each decoder is given a bound for its output and for what it keeps in memory.

use std::io::{self, Read};

use thiserror::Error;

/// What an LZ4 legacy frame decompresses to at most per block (`LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE` of the kernel).
const LZ4_BLOCK_MAX: usize = 8 << 20;

/// The dictionary that an xz stream may ask for, in KiB: twice what the kernel's own build uses.
const XZ_MEMORY_MAX_KIB: u32 = 256 << 10;

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The xz container around LZMA2.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4's legacy frame, which only the kernel still writes.
    Lz4Legacy,
}

/// Why something could not be decompressed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// The stream is damaged or cut short.
    #[error("the {compression:?} stream is damaged")]
    Damaged {
        /// As what it was read.
        compression: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// The result is larger than allowed.
    #[error("the {compression:?} stream decompresses to more than {limit} bytes")]
    TooLarge {
        /// As what it was read.
        compression: Compression,
        /// The bound that it exceeds.
        limit: usize,
    },
}

impl Compression {
    /// Tells the format of `data` by its first bytes; `None` if it is none of those known here.
    #[must_use]
    pub fn detect(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 4] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4Legacy),
        ];
        MAGICS
            .into_iter()
            .find(|(magic, _)| data.starts_with(magic))
            .map(|(_, compression)| compression)
    }

    /// Decompresses all of `data`, to at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`CompressionError`] says whether the data are damaged or too large.
    pub fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
        let damaged = |source| CompressionError::Damaged {
            compression: self,
            source,
        };
        let output = match self {
            Self::Gzip => read_bounded(flate2::read::GzDecoder::new(data), limit),
            Self::Xz => read_bounded(
                lzma_rust2::XzReader::new_mem_limit(data, false, XZ_MEMORY_MAX_KIB),
                limit,
            ),
            Self::Zstd => ruzstd::decoding::StreamingDecoder::new(data)
                .map_err(io::Error::other)
                .and_then(|decoder| read_bounded(decoder, limit)),
            Self::Lz4Legacy => lz4_legacy(data, limit),
        }
        .map_err(damaged)?;
        output.ok_or(CompressionError::TooLarge {
            compression: self,
            limit,
        })
    }
}

/// Reads to the end; `None` if there is more than `limit`.
fn read_bounded(reader: impl Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut output = Vec::new();
    reader
        .take((limit as u64).saturating_add(1))
        .read_to_end(&mut output)?;
    Ok((output.len() <= limit).then_some(output))
}

/// Decodes a legacy frame: a magic number, then blocks, each led by its compressed size.
fn lz4_legacy(data: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut rest = data.get(4..).unwrap_or_default();
    let mut output = Vec::new();
    let mut block = Vec::new();
    while !rest.is_empty() {
        let (size, after) = rest
            .split_first_chunk()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let size = u32::from_le_bytes(*size) as usize;
        let compressed = after.get(..size).ok_or(io::ErrorKind::UnexpectedEof)?;
        rest = &after[size..];

        block.resize(LZ4_BLOCK_MAX, 0);
        let length = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if output.len() + length > limit {
            return Ok(None);
        }
        output.extend_from_slice(&block[..length]);
    }
    Ok(Some(output))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    // `hello kernel\n` as gzip, xz, zstd and lz4 -l compress it.
    const GZIP: &[u8] = include_bytes!("../../tests/data/hello.gz");
    const XZ: &[u8] = include_bytes!("../../tests/data/hello.xz");
    const ZSTD: &[u8] = include_bytes!("../../tests/data/hello.zst");
    const LZ4: &[u8] = include_bytes!("../../tests/data/hello.lz4");

    #[rstest]
    #[case(GZIP, Compression::Gzip)]
    #[case(XZ, Compression::Xz)]
    #[case(ZSTD, Compression::Zstd)]
    #[case(LZ4, Compression::Lz4Legacy)]
    fn each_format_is_recognised_and_decoded(#[case] data: &[u8], #[case] expected: Compression) {
        let detected = Compression::detect(data).unwrap();

        assert_eq!(detected, expected);
        assert_eq!(detected.decompress(data, 13).unwrap(), b"hello kernel\n");
    }

    #[rstest]
    #[case(GZIP)]
    #[case(XZ)]
    #[case(ZSTD)]
    #[case(LZ4)]
    fn each_format_stops_at_the_limit(#[case] data: &[u8]) {
        let error = Compression::detect(data)
            .unwrap()
            .decompress(data, 12)
            .unwrap_err();

        assert!(matches!(
            error,
            CompressionError::TooLarge { limit: 12, .. }
        ));
    }

    #[rstest]
    #[case(GZIP)]
    #[case(XZ)]
    #[case(ZSTD)]
    #[case(LZ4)]
    fn stream_cut_short_is_damaged(#[case] data: &[u8]) {
        let error = Compression::detect(data)
            .unwrap()
            .decompress(&data[..data.len() / 2], 1 << 20)
            .unwrap_err();

        assert!(matches!(error, CompressionError::Damaged { .. }));
    }

    #[test]
    fn lz4_block_longer_than_the_data_is_damaged() {
        let data = [0x02, 0x21, 0x4c, 0x18, 0xff, 0xff, 0xff, 0xff, 0];

        let error = Compression::Lz4Legacy
            .decompress(&data, 1 << 20)
            .unwrap_err();

        assert!(matches!(error, CompressionError::Damaged { .. }));
    }

    #[test]
    fn elf_is_not_compressed() {
        assert_eq!(Compression::detect(b"\x7fELF"), None);
    }
}
