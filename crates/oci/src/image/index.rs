// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors and indexes (image-spec, descriptor and image-index). Only what is used is read;
//! `null`, which some writers put for an empty map or list, is taken for one.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::Platform;
use super::tag::Named;
use crate::digest::Digest;

/// Media types of a document that lists manifests.
pub(super) const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Annotation with an image's name in its layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with an image's full name, as containerd writes it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A reference to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Digest of its content.
    pub digest: Digest,
    /// Bytes of its content.
    pub size: u64,
    /// Whom the image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further facts, names among them.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// By the names that it has in its layout.
impl Named for Descriptor {
    fn names(&self) -> impl Iterator<Item = &str> {
        [REF_NAME, CONTAINERD_NAME]
            .into_iter()
            .filter_map(|key| self.annotations.get(key))
            .map(String::as_str)
    }
}

/// A list of images, or of one image's variants.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// What the document says that it is.
    pub media_type: Option<String>,
    /// Its images, or further indexes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    /// Present in manifests alone: a document with both would be two things at once.
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

impl Index {
    /// An index of these.
    pub(super) fn of(manifests: Vec<Descriptor>) -> Self {
        Self {
            media_type: None,
            manifests,
            layers: None,
        }
    }

    /// Reads an index.
    ///
    /// # Errors
    /// Where it is not one.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let index: Self = serde_json::from_slice(json)?;
        if index.layers.is_some() {
            return Err(serde::de::Error::custom("an index has no layers"));
        }
        Ok(index)
    }
}

/// Reads `null` as the type's default.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
