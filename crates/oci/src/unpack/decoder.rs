// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One layer's blob, checked, decompressed and hashed as it is read.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::progress::Progress;
use super::zstd::{Turn, ZstdDecoder};
use crate::digest::{Digest, Hasher};
use crate::image::{Blob, Compression, ImageError, Layer, Source};

/// Bytes of a blob that are read at once.
const BUFFER: usize = 128 << 10;

/// A layer's tar stream.
pub(super) struct Decoder<'p> {
    stream: Stream<'p>,
    /// Of the decompressed content; a layer that is not compressed is its blob, whose digest is checked already.
    hasher: Option<Hasher>,
    blob_digest: Digest,
}

/// How a blob ends.
pub(super) struct End {
    /// Digest of the decompressed content, as far as it was read.
    pub(super) found: Digest,
    /// Whether the blob's own size and digest are right.
    pub(super) blob: io::Result<()>,
}

type Input<'p> = BufReader<Watched<'p>>;

enum Stream<'p> {
    Plain(Box<Input<'p>>),
    // A layer may be several gzip streams, one after another: parallel compressors and lazily
    // loadable formats write such.
    Gzip(Box<MultiGzDecoder<Input<'p>>>),
    Zstd(Box<ZstdDecoder<'p, Input<'p>>>),
}

/// A layer that is not opened yet: an image may have more layers than a process may have files.
#[derive(Clone, Copy)]
pub(super) struct Closed<'p> {
    pub(super) source: &'p Source,
    pub(super) layer: &'p Layer,
    pub(super) progress: Option<&'p dyn Progress>,
}

impl<'p> Decoder<'p> {
    /// Starts to read a layer, which waits for its turn before it takes much memory.
    pub(super) fn open(closed: Closed<'p>, turn: Turn<'p>) -> Self {
        let layer = closed.layer;
        let input = BufReader::with_capacity(BUFFER, Watched { closed, blob: None });
        let stream = match layer.compression {
            Compression::None => Stream::Plain(Box::new(input)),
            Compression::Gzip => Stream::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => Stream::Zstd(Box::new(ZstdDecoder::new(input, turn))),
        };
        let is_its_blob =
            layer.compression == Compression::None && layer.descriptor.digest == layer.diff_id;
        Self {
            stream,
            hasher: (!is_its_blob).then(|| Hasher::new(layer.diff_id.algorithm())),
            blob_digest: layer.descriptor.digest.clone(),
        }
    }

    /// Reads what is left of the blob, without decompressing it, and says how it ends.
    pub(super) fn end(mut self) -> End {
        let input = match &mut self.stream {
            Stream::Plain(input) => input,
            Stream::Gzip(decoder) => decoder.get_mut(),
            Stream::Zstd(decoder) => decoder.get_mut(),
        };
        let blob = io::copy(input, &mut io::sink()).map(drop);
        let found = match self.hasher {
            Some(hasher) => hasher.finish(),
            None => self.blob_digest,
        };
        End { found, blob }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.stream {
            Stream::Plain(input) => input.read(buffer),
            Stream::Gzip(decoder) => decoder.read(buffer),
            Stream::Zstd(decoder) => decoder.read(buffer),
        }?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}

impl Closed<'_> {
    /// Opens the blob.
    pub(super) fn blob(&self) -> Result<Blob, ImageError> {
        let descriptor = &self.layer.descriptor;
        self.source
            .blob(descriptor, &format!("layer {}", descriptor.digest))
    }
}

/// A blob whose reading is told to somebody.
struct Watched<'p> {
    closed: Closed<'p>,
    /// Opened when it is first read, where there is a way for the error.
    blob: Option<Blob>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let blob = match &mut self.blob {
            Some(blob) => blob,
            // That it is there was seen before, so this is an accident.
            none => none.insert(self.closed.blob().map_err(io::Error::other)?),
        };
        let count = blob.read(buffer)?;
        if let Some(progress) = self.closed.progress {
            progress.advanced(count as u64);
        }
        Ok(count)
    }
}
