// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an image's layers to a directory tree.
//!
//! ```text
//! decoder    one layer's blob, checked, decompressed and hashed as it is read
//! zstd       streams of zstd frames
//! ahead      decoding on threads of their own, while earlier layers are applied
//! progress   how far it has come
//! ```
//!
//! Layers are decoded beside each other and applied in their order: with two processors, one decodes what the other
//! applies, which takes about as long.

mod ahead;
mod decoder;
mod progress;
mod zstd;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread;

use thiserror::Error;

use self::decoder::{Closed, Decoder, End};
use crate::image::{Image, ImageError, Layer, Source};
use crate::layer::{Applier, LayerError, Options};

pub use self::progress::Progress;

/// Most threads that decode, unless more are asked for.
const DECODER_LIMIT: usize = 4;

/// An image that cannot be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
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

/// Unpacks all layers of `image` into the empty directory `root`, and tells `progress` of it.
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
    progress: Option<&dyn Progress>,
) -> Result<(), UnpackError> {
    let layer = |layer| Closed {
        source,
        layer,
        progress,
    };
    let layers: Vec<Closed<'_>> = image.layers.iter().map(layer).collect();
    // Before anything is made: what is missing is missing.
    for layer in &layers {
        layer.blob()?;
    }
    if let Some(progress) = progress {
        let sizes = image.layers.iter().map(|layer| layer.descriptor.size);
        progress.begun(sizes.fold(0, u64::saturating_add), image.layers.len());
    }
    let applying = Applying {
        layers: &image.layers,
        applier: Applier::new(root, options),
        progress,
    };
    let count = options.decoders.unwrap_or_else(default_decoders);
    match count.min(layers.len()) {
        0 => applying.one_by_one(layers),
        count => ahead::unpack(applying, layers, count),
    }
}

/// One thread a processor, but not more than can be faster than the one that applies; with one processor, threads
/// would only wait for each other.
fn default_decoders() -> usize {
    match thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => processors.get().min(DECODER_LIMIT),
        _ => 0,
    }
}

/// Whether a damaged blob can be what makes a layer fail so.
fn may_be_damage(error: &LayerError) -> bool {
    matches!(error, LayerError::Tar { .. } | LayerError::Read { .. })
}

/// The side that applies what is decoded.
struct Applying<'a> {
    layers: &'a [Layer],
    applier: Applier,
    progress: Option<&'a dyn Progress>,
}

impl Applying<'_> {
    /// Decodes each layer as it is applied.
    fn one_by_one(mut self, layers: Vec<Closed<'_>>) -> Result<(), UnpackError> {
        for (index, layer) in layers.into_iter().enumerate() {
            let mut decoder = Decoder::open(layer, Box::new(|| Ok(())));
            let outcome = self.apply(index, &mut decoder);
            self.judge(index, outcome, || decoder.end())?;
        }
        Ok(self.applier.finish()?)
    }

    fn apply(&mut self, index: usize, stream: impl Read) -> Result<(), LayerError> {
        if let Some(progress) = self.progress {
            progress.layer_begun(index, &self.layers[index]);
        }
        let name = self.layers[index].descriptor.digest.to_string();
        self.applier.layer(&name, stream)
    }

    /// Says what the outcome of a layer means, once it is known how its blob ends.
    fn judge(
        &self,
        index: usize,
        outcome: Result<(), LayerError>,
        end: impl FnOnce() -> End,
    ) -> Result<(), UnpackError> {
        let layer = &self.layers[index];
        let name = || layer.descriptor.digest.to_string();
        let damaged = |source| UnpackError::Damaged {
            layer: name(),
            source,
        };
        match outcome {
            // What makes a damaged blob unreadable is an accident; that it is damaged is the cause.
            Err(error) if may_be_damage(&error) => {
                end().blob.map_err(damaged)?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        let End { found, blob } = end();
        // The decoder may have stopped before the blob's end.
        blob.map_err(damaged)?;
        if found != layer.diff_id {
            return Err(UnpackError::Layer(LayerError::DiffId {
                layer: name(),
                expected: layer.diff_id.clone(),
                found,
            }));
        }
        if let Some(progress) = self.progress {
            progress.layer_done(index);
        }
        Ok(())
    }
}
