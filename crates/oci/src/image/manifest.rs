// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Manifests (image-spec, manifest; docker's image manifest version 2, schema 2).

use serde::Deserialize;

use super::index::{Descriptor, null_as_default};
use crate::digest::Digest;

/// Media types of a manifest.
pub(super) const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Media types of an image's config.
pub(super) const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// The blobs of one image.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What the document says that it is.
    pub media_type: Option<String>,
    /// How its container is to run.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// Present in indexes alone: a document with both would be two things at once.
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Where it is not one.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let manifest: Self = serde_json::from_slice(json)?;
        if manifest.manifests.is_some() {
            return Err(serde::de::Error::custom("a manifest lists no manifests"));
        }
        Ok(manifest)
    }
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the blob's content once decompressed.
    pub diff_id: Digest,
    /// How it is compressed.
    pub compression: Compression,
}

/// The compression that a layer's media type states; `None` for types that are not supported.
pub(super) fn compression(media_type: &str) -> Option<Compression> {
    let kind = [
        "application/vnd.oci.image.layer.v1.",
        "application/vnd.oci.image.layer.nondistributable.v1.",
    ]
    .into_iter()
    .chain([
        "application/vnd.docker.image.rootfs.diff.",
        "application/vnd.docker.image.rootfs.foreign.diff.",
    ])
    .find_map(|prefix| media_type.strip_prefix(prefix))?;
    match kind {
        "tar" => Some(Compression::None),
        "tar+gzip" | "tar.gzip" => Some(Compression::Gzip),
        "tar+zstd" | "tar.zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("application/vnd.oci.image.layer.v1.tar", Some(Compression::None))]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip))]
    #[case(
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        Some(Compression::Gzip)
    )]
    #[case(
        "application/vnd.docker.image.rootfs.diff.tar",
        Some(Compression::None)
    )]
    #[case(
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Some(Compression::Gzip)
    )]
    #[case("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd))]
    #[case(
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Some(Compression::Zstd)
    )]
    #[case("application/vnd.oci.image.layer.v1.tar+bzip2", None)]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None)]
    #[case("application/octet-stream", None)]
    #[case("", None)]
    fn compression_is_told_by_the_media_type(
        #[case] media_type: &str,
        #[case] expected: Option<Compression>,
    ) {
        assert_eq!(compression(media_type), expected);
    }

    #[test]
    fn document_that_is_manifest_and_index_at_once_is_refused() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let json =
            format!(r#"{{"config":{{"digest":"{digest}","size":0}},"layers":[],"manifests":[]}}"#);

        assert!(Manifest::from_json(json.as_bytes()).is_err());
        assert!(super::super::Index::from_json(json.as_bytes()).is_err());
    }
}
