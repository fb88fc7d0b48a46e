// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `docker save` writes: an archive with a `manifest.json` that lists images, each with the names of its config
//! and of its layers in the archive (docker's image specification, version 1.2, "Combined Image JSON + Filesystem
//! Changeset Format").
//!
//! The layout that such an archive could have been is made up beside its files, so that nobody else has to know of the
//! format. It states no digests of its own, but the config those of the layers' content, so that all is checked that a
//! layout's would be.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::archive::{Members, file_name};
use super::compression::Format;
use super::config::ImageConfig;
use super::index::{REF_NAME, null_as_default};
use super::member::Member;
use super::source::DOCUMENT_LIMIT;
use super::{Descriptor, ImageError};
use crate::digest::{Algorithm, Digest, Hasher};

/// Name of the list of images.
pub(super) const MANIFEST: &str = "manifest.json";

/// Most images of an archive.
const IMAGE_LIMIT: usize = 1000;
/// Most layers that are looked at in an archive.
const LAYER_LIMIT: usize = 20_000;

/// One image of the list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    layers: Vec<String>,
}

/// Adds a layout's files to those of an archive that docker wrote.
pub(super) fn add_layout(path: &Path, members: &mut Members) -> Result<(), ImageError> {
    let mut maker = Maker {
        path,
        members,
        layers: 0,
    };
    let json = maker.document(MANIFEST)?;
    let saved: Vec<Saved> =
        serde_json::from_slice(&json).map_err(|source| maker.json_error(MANIFEST, source))?;
    if saved.len() > IMAGE_LIMIT {
        return Err(ImageError::TooManyDocuments {
            path: path.to_owned(),
            limit: IMAGE_LIMIT,
        });
    }
    let mut manifests = Vec::new();
    for image in &saved {
        let manifest = maker.manifest(image)?;
        if image.repo_tags.is_empty() {
            manifests.push(json!(manifest));
        }
        for tag in &image.repo_tags {
            let mut named = manifest.clone();
            named.annotations.insert(REF_NAME.to_owned(), tag.clone());
            manifests.push(json!(named));
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    members.insert("index.json".to_owned(), Member::of_bytes(index.into()));
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    members.insert("oci-layout".to_owned(), Member::of_bytes(layout));
    Ok(())
}

struct Maker<'m> {
    path: &'m Path,
    members: &'m mut Members,
    layers: usize,
}

impl Maker<'_> {
    /// Makes the manifest of an image; its config and layers become blobs.
    fn manifest(&mut self, image: &Saved) -> Result<Descriptor, ImageError> {
        let json = self.document(&image.config)?;
        let config = ImageConfig::from_json(&json)
            .map_err(|source| self.json_error(&image.config, source))?;
        self.layers += image.layers.len();
        if self.layers > LAYER_LIMIT {
            return Err(ImageError::TooManyLayers {
                path: self.path.to_owned(),
                found: self.layers,
                limit: LAYER_LIMIT,
            });
        }
        let mut layers = Vec::new();
        for (number, name) in image.layers.iter().enumerate() {
            layers.push(self.layer(name, config.rootfs.diff_ids.get(number))?);
        }
        let config = self.document_blob("application/vnd.oci.image.config.v1+json", json);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        Ok(self.document_blob(media_type, manifest.to_string().into_bytes()))
    }

    fn layer(&mut self, name: &str, diff_id: Option<&Digest>) -> Result<Descriptor, ImageError> {
        let member = self.member(name)?;
        let (format, known) = match Format::of(&member) {
            // A layer that is not compressed has its content's digest; it is checked when it is read.
            None => ("tar", diff_id.cloned()),
            Some(Format::Gzip) => ("tar+gzip", None),
            Some(Format::Zstd) => ("tar+zstd", None),
            Some(format) => {
                return Err(ImageError::MediaType {
                    path: self.path.to_owned(),
                    what: what(name),
                    found: format.name().to_owned(),
                });
            }
        };
        let digest = match known {
            Some(digest) => digest,
            None => self.digest_of(name, member.clone())?,
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.{format}");
        Ok(self.blob(&media_type, digest, member))
    }

    fn digest_of(&self, name: &str, mut member: Member) -> Result<Digest, ImageError> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 128 << 10];
        loop {
            match member.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(source) => return Err(self.read_error(name, source)),
            }
        }
    }

    fn document_blob(&mut self, media_type: &str, content: Vec<u8>) -> Descriptor {
        let digest = Digest::of(Algorithm::Sha256, &content);
        self.blob(media_type, digest, Member::of_bytes(content))
    }

    fn blob(&mut self, media_type: &str, digest: Digest, member: Member) -> Descriptor {
        let size = member.remaining();
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        self.members.insert(name, member);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: [].into(),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let member = self.member(name)?;
        let size = member.remaining();
        if size > DOCUMENT_LIMIT {
            return Err(ImageError::TooLarge {
                path: self.path.to_owned(),
                what: what(name),
                size,
                limit: DOCUMENT_LIMIT,
            });
        }
        let mut bytes = Vec::new();
        member
            .take(DOCUMENT_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|source| self.read_error(name, source))?;
        Ok(bytes)
    }

    fn member(&self, name: &str) -> Result<Member, ImageError> {
        file_name("", name.as_bytes())
            .and_then(|name| self.members.get(&name))
            .ok_or_else(|| ImageError::MissingFile {
                path: self.path.to_owned(),
                what: what(name),
            })
    }

    fn read_error(&self, name: &str, source: std::io::Error) -> ImageError {
        ImageError::Read {
            path: self.path.to_owned(),
            what: what(name),
            source,
        }
    }

    fn json_error(&self, name: &str, source: serde_json::Error) -> ImageError {
        ImageError::Json {
            path: self.path.to_owned(),
            what: what(name),
            source,
        }
    }
}

fn what(name: &str) -> String {
    format!("file {}", crate::show::quoted(name.as_bytes()))
}
