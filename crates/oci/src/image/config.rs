// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image's config (image-spec, config): how its container is to run, and what its layers hold.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};

use super::Platform;
use super::index::null_as_default;
use crate::digest::Digest;

/// The config document of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture, by Go's names.
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    /// Operating system, by Go's names.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// Variant of the CPU.
    #[serde(default)]
    pub variant: Option<String>,
    /// When the image was made (RFC 3339).
    #[serde(default)]
    pub created: Option<String>,
    /// How the container is to run.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: ContainerConfig,
    /// What the layers hold.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
}

/// Digests of an image's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digest of each layer's uncompressed content, the lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

/// How a container of the image is to run, where nobody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// First words of the command line.
    #[serde(default, deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Words after them, which a user's command replaces.
    #[serde(default, deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Environment: `NAME=VALUE`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Directory to start in.
    #[serde(default, deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// User to run as: `user[:group]`, by name or number.
    #[serde(default, deserialize_with = "null_as_default")]
    pub user: String,
    /// Directories whose content is the container's own.
    #[serde(default, deserialize_with = "keys")]
    pub volumes: BTreeSet<String>,
    /// Ports that the container serves.
    #[serde(default, deserialize_with = "keys")]
    pub exposed_ports: BTreeSet<String>,
    /// Signal that asks the container to end.
    #[serde(default, deserialize_with = "null_as_default")]
    pub stop_signal: String,
    /// Facts of any kind.
    #[serde(default, deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Reads a config document.
    ///
    /// # Errors
    /// Where it is not one.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// What the image runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// A Go set: a map whose values are empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_is_read() {
        let json = br#"{
            "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {
                "User": "nobody:nogroup", "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["true"],
                "Env": ["A=1"], "WorkingDir": "/srv", "Volumes": {"/data": {}},
                "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Labels": {"a": "b"}, "OnBuild": null
            },
            "rootfs": {"type": "layers", "diff_ids": []}, "history": []
        }"#;

        let config = ImageConfig::from_json(json).unwrap();

        assert_eq!(config.platform().to_string(), "linux/amd64");
        assert_eq!(
            config.config,
            ContainerConfig {
                entrypoint: vec!["/bin/sh".into(), "-c".into()],
                cmd: vec!["true".into()],
                env: vec!["A=1".into()],
                working_dir: "/srv".into(),
                user: "nobody:nogroup".into(),
                volumes: ["/data".into()].into(),
                exposed_ports: ["80/tcp".into()].into(),
                stop_signal: "SIGINT".into(),
                labels: [("a".into(), "b".into())].into(),
            }
        );
    }

    #[test]
    fn null_is_taken_for_empty() {
        let json = br#"{"architecture": "amd64", "os": "linux", "config": {
            "Entrypoint": null, "Cmd": null, "Env": null, "Volumes": null, "Labels": null, "User": null,
            "ExposedPorts": null, "WorkingDir": null, "StopSignal": null}, "rootfs": {"diff_ids": null}}"#;

        let config = ImageConfig::from_json(json).unwrap();

        assert_eq!(config.config, ContainerConfig::default());
    }

    #[test]
    fn deep_nesting_is_refused() {
        let json = [b"{\"config\":".repeat(100_000), b"null".to_vec()].concat();

        assert!(ImageConfig::from_json(&json).is_err());
    }
}
