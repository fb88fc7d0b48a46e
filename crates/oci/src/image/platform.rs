// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What images run on, and which of an index are looked at, in which order.
//!
//! What is pulled from a registry is found by the same order as what is in the store: another would leave the store
//! without the image that it looks for.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Descriptor;
use super::index::INDEX_TYPES;
use super::manifest::MANIFEST_TYPES;

/// What images run on here.
pub const PLATFORM: &str = "linux/amd64";

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture, by Go's names.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, by Go's names.
    #[serde(default)]
    pub os: String,
    /// Variant of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Whether it is [`PLATFORM`], of any variant.
    pub fn fits(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// Lowest first; later variants of the architecture take newer CPUs, so they come last.
    fn rank(&self) -> u8 {
        match self.variant.as_deref() {
            None | Some("" | "v1") => 0,
            Some("v2") => 2,
            Some("v3") => 3,
            Some(_) => 4,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Those of an index' entries in which an image for [`PLATFORM`] may be found, in the order in which to look: those that
/// are said to be for it, plainest CPU first, and then those of which nothing is said, indexes among them. The others,
/// for other platforms or neither indexes nor manifests, are told to `passed_over`.
pub fn candidates<'d>(
    entries: impl IntoIterator<Item = &'d Descriptor>,
    mut passed_over: impl FnMut(&'d Descriptor),
) -> Vec<&'d Descriptor> {
    let mut candidates = Vec::new();
    for entry in entries {
        let is_for_others = entry
            .platform
            .as_ref()
            .is_some_and(|platform| !platform.fits());
        if is_for_others || !is_document(&entry.media_type) {
            passed_over(entry);
            continue;
        }
        let rank = entry.platform.as_ref().map_or(u8::MAX, Platform::rank);
        candidates.push((rank, entry));
    }
    candidates.sort_by_key(|(rank, _)| *rank);
    candidates.into_iter().map(|(_, entry)| entry).collect()
}

fn is_document(media_type: &str) -> bool {
    INDEX_TYPES.contains(&media_type) || MANIFEST_TYPES.contains(&media_type)
}
