// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Image layouts, in directories and archives, whole or with a fault.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use coracle_oci::digest::{Algorithm, Digest};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::tar::{Item, file, tar};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The files of a layout, by path.
#[derive(Clone)]
pub struct Layout {
    pub files: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let files = [(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        )]
        .into();
        let mut layout = Self {
            files,
            manifests: Vec::new(),
        };
        layout.write_index();
        layout
    }

    /// A layout of one image, tagged `latest`.
    pub fn with_image(layers: &[&[Item]]) -> Self {
        let mut layout = Self::new();
        let manifest = layout.image("amd64", layers);
        layout.tag("latest", manifest);
        layout
    }

    /// Adds a blob; gives its descriptor.
    pub fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.files
            .insert(format!("blobs/sha256/{}", digest.hex()), content.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
    }

    pub fn json(&mut self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string().as_bytes())
    }

    /// Adds an image of gzip layers; gives its manifest's descriptor.
    pub fn image(&mut self, architecture: &str, layers: &[&[Item]]) -> Value {
        let streams: Vec<Vec<u8>> = layers.iter().map(|items| tar(items)).collect();
        let diff_ids: Vec<String> = streams
            .iter()
            .map(|tar| Digest::of(Algorithm::Sha256, tar).to_string())
            .collect();
        let layers: Vec<Value> = streams
            .iter()
            .map(|tar| self.blob(GZIP, &gzip(tar)))
            .collect();
        self.manifest(architecture, &layers, &diff_ids)
    }

    pub fn manifest(&mut self, architecture: &str, layers: &[Value], diff_ids: &[String]) -> Value {
        let config = self.json(
            CONFIG,
            &json!({
                "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.json(MANIFEST, &manifest)
    }

    pub fn tag(&mut self, tag: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.add(descriptor);
    }

    pub fn add(&mut self, descriptor: Value) {
        self.manifests.push(descriptor);
        self.write_index();
    }

    fn write_index(&mut self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.files
            .insert("index.json".to_owned(), index.to_string().into_bytes());
    }

    /// The path of the blob that `descriptor` names.
    pub fn path_of(descriptor: &Value) -> String {
        format!(
            "blobs/{}",
            descriptor["digest"].as_str().unwrap().replace(':', "/")
        )
    }

    /// The largest blob: a layer, in these tests.
    pub fn largest_blob(&self) -> String {
        let blobs = self
            .files
            .iter()
            .filter(|(path, _)| path.starts_with("blobs/"));
        blobs
            .max_by_key(|(_, content)| content.len())
            .unwrap()
            .0
            .clone()
    }

    pub fn write_directory(&self, path: &Path) -> PathBuf {
        for (name, content) in &self.files {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        path.to_owned()
    }

    pub fn archive(&self) -> Vec<u8> {
        let items: Vec<Item> = self
            .files
            .iter()
            .map(|(name, content)| file(name, content))
            .collect();
        tar(&items)
    }

    pub fn write_archive(&self, path: &Path) -> PathBuf {
        fs::write(path, self.archive()).unwrap();
        path.to_owned()
    }
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(content: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
}
