// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an image's layers to a directory tree.

use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

use crate::digest::Hashing;
use crate::image::{Blob, Compression, Image, ImageError, Layer, Source};
use crate::layer::{Applier, LayerError, Options};

/// An image that cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// One of its blobs is missing or has another size than stated.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// One of its layers cannot be applied.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// One of its layers has other content than stated.
    #[error("layer {layer} cannot be unpacked")]
    Damaged {
        /// Digest of the layer's blob.
        layer: String,
        /// How it differs; holds a [`ContentError`](crate::digest::ContentError).
        #[source]
        source: io::Error,
    },
}

/// Unpacks all layers of `image` into the empty directory `root`.
///
/// The digest of each blob and the one of its uncompressed content are checked. That can only be
/// known when a layer has been read to its end, so a tree is good only where this succeeds.
///
/// # Errors
/// Where a blob is missing, damaged, too large, or would reach outside of `root`.
pub fn unpack(
    source: &Source,
    image: &Image,
    root: OwnedFd,
    options: Options,
) -> Result<(), UnpackError> {
    let mut applier = Applier::new(root, options);
    for layer in &image.layers {
        let blob = source.blob(
            &layer.descriptor,
            &format!("layer {}", layer.descriptor.digest),
        )?;
        apply(&mut applier, layer, blob)?;
    }
    Ok(applier.finish()?)
}

fn apply(applier: &mut Applier, layer: &Layer, blob: Blob) -> Result<(), UnpackError> {
    let name = layer.descriptor.digest.to_string();
    let mut blob = BufReader::with_capacity(128 << 10, blob);
    let stream: &mut dyn Read = match layer.compression {
        Compression::None => &mut blob,
        // A layer may be several gzip streams, one after another: parallel compressors and lazily
        // loadable formats write such.
        Compression::Gzip => &mut MultiGzDecoder::new(&mut blob),
    };
    let mut stream = Hashing::new(stream, layer.diff_id.algorithm());
    let outcome = applier.layer(&name, &mut stream);
    let found = stream.finish();
    match outcome {
        // What makes a damaged blob unreadable is an accident; that it is damaged is the cause.
        Err(error @ (LayerError::Tar { .. } | LayerError::Read { .. })) => {
            match read_out(&mut blob) {
                Err(source) => Err(UnpackError::Damaged {
                    layer: name,
                    source,
                }),
                Ok(()) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
        Ok(()) if found != layer.diff_id => Err(LayerError::DiffId {
            layer: name,
            expected: layer.diff_id.clone(),
            found,
        }
        .into()),
        // The decoder may have stopped before the blob's end.
        Ok(()) => read_out(&mut blob).map_err(|source| UnpackError::Damaged {
            layer: name,
            source,
        }),
    }
}

fn read_out(blob: &mut impl Read) -> io::Result<()> {
    io::copy(blob, &mut io::sink()).map(drop)
}
