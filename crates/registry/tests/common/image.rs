// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images as a registry serves them.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::Descriptor;
use coracle_registry::{Layout, Sink};
use serde_json::{Value, json};

use super::server::{Reply, Request};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// What a registry has: blobs and manifests of the repository `test`, by digest and tag.
#[derive(Clone, Default)]
pub struct Repository {
    /// Media type and content by `manifests/NAME` or `blobs/DIGEST`.
    pub content: BTreeMap<String, (String, Vec<u8>)>,
}

impl Repository {
    /// One image `test:latest` for linux/amd64 with these layers.
    pub fn with_image(layers: &[Vec<u8>]) -> Self {
        let mut repository = Self::default();
        let manifest = repository.add_image("amd64", layers);
        repository.tag("latest", MANIFEST, &manifest);
        repository
    }

    /// Bytes of a new image's manifest.
    pub fn add_image(&mut self, architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| json!({"mediaType": LAYER, "digest": digest(layer), "size": layer.len()}))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": descriptors});
        for blob in layers.iter().chain([&config]) {
            let key = format!("blobs/{}", digest(blob));
            let value = ("application/octet-stream".to_owned(), blob.clone());
            self.content.insert(key, value);
        }
        self.add_document(MANIFEST, manifest.to_string().into_bytes())
    }

    /// Bytes of a new manifest that is none of an image.
    pub fn add_artifact(&mut self) -> Vec<u8> {
        let config = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest(b"{}"), "size": 2});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
        self.add_document(MANIFEST, manifest.to_string().into_bytes())
    }

    /// Bytes of a new index of entries, each with its architecture, which may have a variant (`amd64/v2`), its media type
    /// and what it stands for; one without an architecture says no platform.
    pub fn add_index(&mut self, entries: &[(&str, &str, &[u8])]) -> Vec<u8> {
        let entries: Vec<Value> = entries
            .iter()
            .map(|(architecture, media_type, document)| {
                let mut entry = json!({"mediaType": media_type, "digest": digest(document), "size": document.len()});
                if !architecture.is_empty() {
                    let (architecture, variant) = match architecture.split_once('/') {
                        Some((architecture, variant)) => (architecture, Some(variant)),
                        None => (*architecture, None),
                    };
                    entry["platform"] =
                        json!({"architecture": architecture, "os": "linux", "variant": variant});
                }
                entry
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.add_document(INDEX, index.to_string().into_bytes())
    }

    pub fn add_document(&mut self, media_type: &str, document: Vec<u8>) -> Vec<u8> {
        self.tag(&digest(&document).to_string(), media_type, &document);
        document
    }

    pub fn tag(&mut self, name: &str, media_type: &str, document: &[u8]) {
        let value = (media_type.to_owned(), document.to_vec());
        self.content.insert(format!("manifests/{name}"), value);
    }

    /// Writes all of it into an image layout, with the name `name` for the image `latest`.
    pub fn write(&self, path: &Path, name: &str) {
        let layout = Layout::open(path).unwrap();
        for (key, (media_type, content)) in &self.content {
            let descriptor = Descriptor {
                media_type: media_type.clone(),
                digest: digest(content),
                size: content.len() as u64,
                platform: None,
                annotations: BTreeMap::new(),
            };
            layout.store(&descriptor, &mut &content[..]).unwrap();
            if key == "manifests/latest" {
                layout.name(name, &descriptor).unwrap();
            }
        }
    }

    /// What a registry without faults replies.
    pub fn reply(&self, request: &Request) -> Reply {
        let key = request.path.strip_prefix("/v2/test/").unwrap_or_default();
        let Some((media_type, content)) = self.content.get(key) else {
            return Reply::fault(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        match request.range_start() {
            Some(start) => Reply::new(206, &content[start..]).header(
                "Content-Range",
                &format!("bytes {start}-{}/{}", content.len() - 1, content.len()),
            ),
            None => Reply::new(200, content).header("Content-Type", media_type),
        }
    }
}
