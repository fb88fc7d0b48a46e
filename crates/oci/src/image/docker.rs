// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `docker save` writes: an archive with a `manifest.json` that lists images, each with the names of its config
//! and of its layers in the archive (docker's image specification, version 1.2, "Combined Image JSON + Filesystem
//! Changeset Format").
//!
//! The layout that such an archive could have been is made up beside its files, so that nobody else has to know of the
//! format. It states no digests of its own, but the config those of the layers' content, so that all is checked that a
//! layout's would be. An image is made up when it is asked for: what is wrong with another is in nobody's way.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::json;

use super::archive::{Members, file_name};
use super::compression::Format;
use super::config::ImageConfig;
use super::index::{REF_NAME, null_as_default};
use super::member::Member;
use super::select::{DOCUMENT_COUNT_LIMIT, LAYER_LIMIT};
use super::source::DOCUMENT_LIMIT;
use super::tag::{Named, chosen};
use super::{Descriptor, ImageError, Index};
use crate::digest::{Algorithm, Digest, Hasher};

/// Name of the list of images.
pub(super) const MANIFEST: &str = "manifest.json";

/// Most images of an archive.
const IMAGE_LIMIT: usize = 1000;

/// An opened archive of docker.
#[derive(Debug)]
pub(super) struct Docker {
    path: PathBuf,
    members: Members,
    images: Vec<Saved>,
    made: Mutex<Made>,
}

/// What was made up so far.
#[derive(Debug, Default)]
struct Made {
    /// Files of the layout, by their names.
    files: HashMap<String, Member>,
    /// Digests by where in the archive the content lies: it may be named any number of times, and is hashed once.
    digests: HashMap<(u64, u64), Digest>,
}

/// One image of the list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    layers: Vec<String>,
}

impl Named for Saved {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().map(String::as_str)
    }
}

impl Docker {
    /// Reads the list of images among the archive's files.
    pub(super) fn new(path: &Path, members: Members) -> Result<Self, ImageError> {
        let mut docker = Self {
            path: path.to_owned(),
            members,
            images: Vec::new(),
            made: Mutex::default(),
        };
        let json = docker.document(MANIFEST)?;
        docker.images =
            serde_json::from_slice(&json).map_err(|source| docker.json_error(MANIFEST, source))?;
        if docker.images.len() > IMAGE_LIMIT {
            return Err(ImageError::TooManyImages {
                path: path.to_owned(),
                found: docker.images.len(),
                limit: IMAGE_LIMIT,
            });
        }
        Ok(docker)
    }

    /// A file of the layout, of an image that was made up.
    pub(super) fn member(&self, name: &str) -> Option<Member> {
        self.made().files.get(name).cloned()
    }

    /// The names of all images.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.images.iter().flat_map(Named::names)
    }

    /// Makes up the image `tag`, or without a tag the only one or `latest`, and gives its manifest; several where they
    /// have one name.
    pub(super) fn image(&self, tag: Option<&str>) -> Result<Vec<Descriptor>, ImageError> {
        let images = chosen(&self.path, &self.images, tag)?;
        if images.len() > DOCUMENT_COUNT_LIMIT {
            return Err(ImageError::TooManyDocuments {
                path: self.path.clone(),
                limit: DOCUMENT_COUNT_LIMIT,
            });
        }
        images
            .into_iter()
            .map(|image| self.manifest(image))
            .collect()
    }

    /// Makes up all images, and the index of the layout.
    pub(super) fn index(&self) -> Result<Index, ImageError> {
        let mut manifests = Vec::new();
        for image in &self.images {
            let manifest = self.manifest(image)?;
            let named = image.repo_tags.iter().map(|tag| {
                let mut named = manifest.clone();
                named.annotations.insert(REF_NAME.to_owned(), tag.clone());
                named
            });
            manifests.extend(named);
            if image.repo_tags.is_empty() {
                manifests.push(manifest);
            }
        }
        Ok(Index::of(manifests))
    }

    /// Makes the manifest of an image; its config and layers become blobs.
    fn manifest(&self, image: &Saved) -> Result<Descriptor, ImageError> {
        let json = self.document(&image.config)?;
        let config = ImageConfig::from_json(&json)
            .map_err(|source| self.json_error(&image.config, source))?;
        if image.layers.len() > LAYER_LIMIT {
            return Err(ImageError::TooManyLayers {
                path: self.path.clone(),
                found: image.layers.len(),
                limit: LAYER_LIMIT,
            });
        }
        let mut layers = Vec::new();
        for (number, name) in image.layers.iter().enumerate() {
            layers.push(self.layer(name, config.rootfs.diff_ids.get(number))?);
        }
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            Digest::of(Algorithm::Sha256, &json),
            self.file(&image.config)?,
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &manifest);
        Ok(self.blob(media_type, digest, Member::of_bytes(manifest)))
    }

    fn layer(&self, name: &str, diff_id: Option<&Digest>) -> Result<Descriptor, ImageError> {
        let member = self.file(name)?;
        let (format, known) = match Format::of(&member) {
            // A layer that is not compressed has its content's digest; it is checked when it is read.
            None => ("tar", diff_id.cloned()),
            Some(Format::Gzip) => ("tar+gzip", None),
            Some(Format::Zstd) => ("tar+zstd", None),
            Some(format) => {
                return Err(ImageError::MediaType {
                    path: self.path.clone(),
                    what: what(name),
                    found: format.name().to_owned(),
                });
            }
        };
        let digest = match known {
            Some(digest) => digest,
            None => self.digest_of(name, &member)?,
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.{format}");
        Ok(self.blob(&media_type, digest, member))
    }

    fn digest_of(&self, name: &str, member: &Member) -> Result<Digest, ImageError> {
        let place = member.place();
        if let Some(digest) = self.made().digests.get(&place) {
            return Ok(digest.clone());
        }
        let mut content = member.clone();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 128 << 10];
        let digest = loop {
            match content.read(&mut buffer) {
                Ok(0) => break hasher.finish(),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(source) => return Err(self.read_error(name, source)),
            }
        };
        self.made().digests.insert(place, digest.clone());
        Ok(digest)
    }

    fn blob(&self, media_type: &str, digest: Digest, member: Member) -> Descriptor {
        let size = member.remaining();
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        self.made().files.insert(name, member);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: [].into(),
        }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let member = self.file(name)?;
        let size = member.remaining();
        if size > DOCUMENT_LIMIT {
            return Err(ImageError::TooLarge {
                path: self.path.clone(),
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

    /// A file of the archive.
    fn file(&self, name: &str) -> Result<Member, ImageError> {
        file_name("", name.as_bytes())
            .and_then(|name| self.members.get(&name))
            .ok_or_else(|| ImageError::MissingFile {
                path: self.path.clone(),
                what: what(name),
            })
    }

    fn read_error(&self, name: &str, source: std::io::Error) -> ImageError {
        ImageError::Read {
            path: self.path.clone(),
            what: what(name),
            source,
        }
    }

    fn json_error(&self, name: &str, source: serde_json::Error) -> ImageError {
        ImageError::Json {
            path: self.path.clone(),
            what: what(name),
            source,
        }
    }
}

fn what(name: &str) -> String {
    format!("file {}", crate::show::quoted(name.as_bytes()))
}
