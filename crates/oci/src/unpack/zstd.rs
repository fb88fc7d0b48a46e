// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams of zstd frames (RFC 8878), one after another: builders that compress in parallel write many, and lazily
//! loadable formats put tables into frames that are to be skipped.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Largest window, and so about half the memory of one decoder, in bytes: what `zstd -d` takes unless told otherwise.
const WINDOW_LIMIT: u64 = 128 << 20;
/// Largest window for which no turn is awaited: what compressors take unless told otherwise.
const USUAL_WINDOW: u64 = 8 << 20;

/// Waits until a decoder may take up the memory of a large window; an error where it is wanted no more. A stream of a few
/// kilobytes can fill one.
pub(super) type Turn<'t> = Box<dyn Fn() -> io::Result<()> + 't>;

/// Decompresses a stream of frames.
pub(super) struct ZstdDecoder<'t, R> {
    source: R,
    frame: FrameDecoder,
    is_in_frame: bool,
    turn: Turn<'t>,
}

impl<'t, R: BufRead> ZstdDecoder<'t, R> {
    pub(super) fn new(source: R, turn: Turn<'t>) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(USUAL_WINDOW);
        Self {
            source,
            frame,
            is_in_frame: false,
            turn,
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Starts the next frame that holds content; says whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let mut header = Vec::new();
            let kept = Keeping {
                source: &mut self.source,
                kept: &mut header,
            };
            match self.frame.init(kept) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::WindowSizeTooBig { requested, .. })
                    if requested <= WINDOW_LIMIT =>
                {
                    (self.turn)()?;
                    self.frame.set_max_window_size(WINDOW_LIMIT);
                    self.frame.init(header.as_slice()).map_err(invalid)?;
                    return Ok(true);
                }
                Err(error) => match skippable(&error) {
                    Some(length) => self.skip(length)?,
                    None => return Err(invalid(error)),
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

impl<R: BufRead> Read for ZstdDecoder<'_, R> {
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
                    .map_err(invalid)?;
            }
            match self.frame.read(buffer)? {
                0 => self.is_in_frame = false,
                count => return Ok(count),
            }
        }
    }
}

/// Keeps what is read, to read it again.
struct Keeping<'k, R> {
    source: &'k mut R,
    kept: &'k mut Vec<u8>,
}

impl<R: Read> Read for Keeping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.kept.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

fn invalid(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
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
    use std::cell::Cell;

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
        ZstdDecoder::new(stream, Box::new(|| Ok(()))).read_to_end(&mut content)?;
        Ok(content)
    }

    /// A frame that says to take a window of `1 << log` bytes, of blocks that are not compressed.
    fn frame_of_window(log: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        for block in content.chunks(100_000) {
            let head = u32::try_from(block.len()).unwrap() << 3;
            frame.extend_from_slice(&head.to_le_bytes()[..3]);
            frame.extend_from_slice(block);
        }
        // The last one, which is empty.
        frame.extend_from_slice(&[1, 0, 0]);
        frame
    }

    #[rstest]
    #[case::usual(23, 0)]
    #[case::large(24, 1)]
    #[case::largest(27, 1)]
    fn turn_is_awaited_for_a_large_window(#[case] log: u8, #[case] expected: usize) {
        let stream = [
            frame(b"before, "),
            frame_of_window(log, &text()),
            frame(b"after"),
        ]
        .concat();
        let turns = Cell::new(0);
        let turn = || {
            turns.set(turns.get() + 1);
            Ok(())
        };
        let mut content = Vec::new();

        ZstdDecoder::new(&stream[..], Box::new(turn))
            .read_to_end(&mut content)
            .unwrap();

        assert!(content == [&b"before, "[..], &text(), b"after"].concat());
        assert_eq!(turns.get(), expected);
    }

    #[test]
    fn stream_whose_turn_does_not_come_ends() {
        let stream = frame_of_window(27, &text());
        let turn = || Err(io::ErrorKind::BrokenPipe.into());
        let mut content = Vec::new();

        let error = ZstdDecoder::new(&stream[..], Box::new(turn))
            .read_to_end(&mut content)
            .unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(content.is_empty());
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
