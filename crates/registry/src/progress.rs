// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a pull is, for whoever shows it.

use std::time::Duration;

use coracle_oci::image::Descriptor;

use crate::error::RegistryError;

/// Where a blob stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It was there before.
    Exists,
    /// So many of its bytes are here. It falls back where the blob is begun anew.
    Received(u64),
    /// It is stored, checked.
    Finished,
}

/// Is told how far a pull is, from several threads at once and often: it should return soon.
pub trait Progress: Sync {
    /// The image's blobs are known: config and layers, each once.
    fn begin(&self, blobs: &[Descriptor]) {
        let _ = blobs;
    }

    /// A blob has gone on.
    fn blob(&self, blob: &Descriptor, state: State) {
        let _ = (blob, state);
    }

    /// Something failed, and is tried again after a while.
    fn retrying(&self, error: &RegistryError, wait: Duration) {
        let _ = (error, wait);
    }
}

/// Nobody looks.
impl Progress for () {}
