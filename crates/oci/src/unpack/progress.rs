// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far an image has been unpacked or copied, for those who show it.

use crate::image::Layer;

/// Is told how far it has come. Calls come from several threads, and `advanced` about once each 128 KiB: an
/// implementation counts, and draws at its own pace.
pub trait Progress: Send + Sync {
    /// It starts: `bytes` are to be read, as they are compressed, in `layers` layers.
    fn begun(&self, bytes: u64, layers: usize) {
        let _ = (bytes, layers);
    }

    /// A further number of bytes was read, of any layer.
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The layer of this number, from 0, is being applied.
    fn layer_begun(&self, index: usize, layer: &Layer) {
        let _ = (index, layer);
    }

    /// The layer of this number is applied, and was what it should be.
    fn layer_done(&self, index: usize) {
        let _ = index;
    }
}
