// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams of zstd frames (RFC 8878), one after another: builders that compress in parallel write many, and lazily
//! loadable formats put tables into frames that are to be skipped.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Largest window, and so about the memory of one decoder, in bytes: what `zstd -d` takes unless told otherwise.
const WINDOW_LIMIT: u64 = 128 << 20;

/// Decompresses a stream of frames.
pub(super) struct ZstdDecoder<R> {
    source: R,
    frame: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> ZstdDecoder<R> {
    pub(super) fn new(source: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(WINDOW_LIMIT);
        Self {
            source,
            frame,
            is_in_frame: false,
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Starts the next frame that holds content; says whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.frame.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(error) => match skippable(&error) {
                    Some(length) => self.skip(length)?,
                    None => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                },
            }
        }
        Ok(false)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
        if skipped == length {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl<R: BufRead> Read for ZstdDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.is_in_frame = true;
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            match self.frame.read(buffer)? {
                0 => self.is_in_frame = false,
                count => return Ok(count),
            }
        }
    }
}

/// Bytes to pass over, where the error is that a frame holds no content.
fn skippable(error: &FrameDecoderError) -> Option<u64> {
    match error {
        FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            length, ..
        }) => Some(u64::from(*length)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    fn skippable_frame(content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18], &length[..], content].concat()
    }

    fn decoded(stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        ZstdDecoder::new(stream).read_to_end(&mut content)?;
        Ok(content)
    }

    fn text() -> Vec<u8> {
        b"some content, ".repeat(40_000)
    }

    #[rstest]
    #[case::nothing(vec![], vec![])]
    #[case::one_frame(frame(&text()), text())]
    #[case::empty_frame(frame(b""), vec![])]
    #[case::frames([frame(b"a"), frame(b""), frame(&text())].concat(), [b"a".to_vec(), text()].concat())]
    #[case::table_between_frames([frame(b"a"), skippable_frame(b"table"), frame(b"b")].concat(), b"ab".to_vec())]
    #[case::table_at_the_end([frame(b"a"), skippable_frame(b"table")].concat(), b"a".to_vec())]
    #[case::only_a_table(skippable_frame(b""), vec![])]
    fn stream_of_frames_is_decoded(#[case] stream: Vec<u8>, #[case] expected: Vec<u8>) {
        assert!(decoded(&stream).unwrap() == expected);
    }

    #[rstest]
    #[case::noise(b"this is no zstd".to_vec())]
    #[case::noise_after_a_frame([frame(b"a"), b"noise".to_vec()].concat())]
    #[case::cut_frame({ let mut stream = frame(&text()); stream.truncate(stream.len() - 1); stream })]
    #[case::cut_header(frame(b"a")[..3].to_vec())]
    #[case::cut_table(skippable_frame(b"table")[..10].to_vec())]
    #[case::huge_window(vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0])]
    fn damaged_stream_is_an_error(#[case] stream: Vec<u8>) {
        assert!(decoded(&stream).is_err());
    }
}
