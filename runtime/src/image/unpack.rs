// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tree of an image. Where there is none because the image is larger than this host allows, that is told with the key
//! of the configuration by which it may be.

use anyhow::Result;
use coracle_oci::image::{Image, Source};
use coracle_oci::layer::LayerError;
use coracle_oci::store::{Rootfs, Store, StoreError};
use coracle_oci::unpack::UnpackError;

use super::progress::Unpacking;
use crate::config::Config;
use crate::table::bytes;

/// The tree of what a user calls `name`; it is unpacked unless it was before.
pub fn unpacked(
    store: &Store,
    source: &Source,
    image: &Image,
    config: &Config,
    name: &str,
) -> Result<Rootfs> {
    store
        .unpacked(source, image, config.unpack, Some(&Unpacking::new()))
        .map_err(|error| {
            let limit = limit(&error).unwrap_or_default();
            anyhow::Error::from(error).context(format!("cannot unpack the image {name}{limit}"))
        })
}

/// The key that sets the limit which an image exceeds, and what it is set to.
fn limit(error: &StoreError) -> Option<String> {
    let StoreError::Unpack(UnpackError::Layer(error)) = error else {
        return None;
    };
    let (key, figure) = match error {
        LayerError::Bytes { limit, .. } => ("image.limit", bytes(*limit)),
        LayerError::Entries { limit, .. } => ("image.entries", limit.to_string()),
        _ => return None,
    };
    Some(format!(" (the configuration limits it: {key} is {figure})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_on_bytes_is_told_in_the_unit_of_its_key() {
        let error = LayerError::Bytes {
            layer: "sha256:00".into(),
            limit: 64 << 30,
        };

        let told = limit(&StoreError::Unpack(error.into()));

        assert_eq!(
            told.unwrap(),
            " (the configuration limits it: image.limit is 64.0 GiB)"
        );
    }
}
