// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a tag and the platform to one image.

use super::config::ImageConfig;
use super::index::{Descriptor, INDEX_TYPES, Index};
use super::manifest::{CONFIG_TYPES, Layer, MANIFEST_TYPES, Manifest, compression};
use super::platform::{self, PLATFORM, Platform};
use super::tag::chosen;
use super::{ImageError, Source};
use crate::digest::{Algorithm, Digest};

/// Most indexes and manifests that are read to find an image, whatever graph of indexes a layout holds.
pub(super) const DOCUMENT_COUNT_LIMIT: usize = 16;
/// Most bytes of those. What is read of an index takes several times its size while what is in it is looked at.
const DOCUMENT_BYTE_LIMIT: u64 = 16 << 20;
/// Most layers of an image; builders stop at 127.
pub(super) const LAYER_LIMIT: usize = 512;

/// An image, found and read but for its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The manifest.
    pub manifest: Descriptor,
    /// How its container is to run.
    pub config: ImageConfig,
    /// The blob of its config.
    pub config_blob: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// Bytes of all its blobs, compressed as they are.
    pub fn size(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.descriptor.size);
        layers.fold(
            self.manifest.size.saturating_add(self.config_blob.size),
            u64::saturating_add,
        )
    }

    /// A name for the tree that the layers make, one on top of the other (image-spec, config,
    /// "Layer ChainID"). Of an image without layers: the digest of nothing.
    pub fn chain_id(&self) -> Digest {
        let mut diff_ids = self.layers.iter().map(|layer| &layer.diff_id);
        let Some(first) = diff_ids.next() else {
            return Digest::of(Algorithm::Sha256, b"");
        };
        diff_ids.fold(first.clone(), |chain, diff_id| {
            Digest::of(Algorithm::Sha256, format!("{chain} {diff_id}").as_bytes())
        })
    }
}

impl Source {
    /// Finds the image `tag`, or without a tag the only one or `latest`, for [`PLATFORM`].
    ///
    /// # Errors
    /// Where there is no such image, it is for another platform, or one of its documents is
    /// missing, damaged or not supported.
    pub fn image(&self, tag: Option<&str>) -> Result<Image, ImageError> {
        match self.docker() {
            Some(docker) => self.among(&docker.image(tag)?),
            None => self.among(chosen(self.path(), &self.index()?.manifests, tag)?),
        }
    }

    /// The image that `descriptor` stands for, for [`PLATFORM`]: a manifest, or one in an index.
    ///
    /// # Errors
    /// As [`Source::image`].
    pub fn image_of(&self, descriptor: &Descriptor) -> Result<Image, ImageError> {
        self.among([descriptor])
    }

    fn among<'d>(
        &self,
        candidates: impl IntoIterator<Item = &'d Descriptor>,
    ) -> Result<Image, ImageError> {
        let mut search = Search {
            source: self,
            documents: 0,
            bytes: 0,
            platforms: Vec::new(),
            no_image: None,
        };
        match search.among(candidates)? {
            Some(image) => Ok(image),
            None => Err(search.nothing_found()),
        }
    }

    /// What a document refers to, for any platform; of other things than indexes and manifests, nothing.
    pub(crate) fn references(&self, descriptor: &Descriptor) -> Result<References, ImageError> {
        let media_type = descriptor.media_type.as_str();
        let what = format!("document {}", descriptor.digest);
        let mut references = References::default();
        if INDEX_TYPES.contains(&media_type) {
            let json = self.document(descriptor, &what)?;
            let index = Index::from_json(&json).map_err(|source| self.json_error(&what, source))?;
            references.documents = index.manifests;
        } else if MANIFEST_TYPES.contains(&media_type) {
            let json = self.document(descriptor, &what)?;
            let manifest =
                Manifest::from_json(&json).map_err(|source| self.json_error(&what, source))?;
            references.blobs = manifest.layers;
            references.blobs.push(manifest.config);
        }
        Ok(references)
    }
}

/// What a document refers to.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Indexes and manifests.
    pub(crate) documents: Vec<Descriptor>,
    /// Configs and layers.
    pub(crate) blobs: Vec<Descriptor>,
}

/// A search through indexes, for the first image that runs here.
struct Search<'s> {
    source: &'s Source,
    documents: usize,
    bytes: u64,
    /// Platforms that were passed over.
    platforms: Vec<String>,
    /// The first of what was passed over since it is no image.
    no_image: Option<ImageError>,
}

impl Search<'_> {
    fn among<'d>(
        &mut self,
        candidates: impl IntoIterator<Item = &'d Descriptor>,
    ) -> Result<Option<Image>, ImageError> {
        for descriptor in platform::candidates(candidates, |other| self.passed_over(other)) {
            if let Some(image) = self.at(descriptor)? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    fn at(&mut self, descriptor: &Descriptor) -> Result<Option<Image>, ImageError> {
        self.documents += 1;
        if self.documents > DOCUMENT_COUNT_LIMIT {
            return Err(ImageError::TooManyDocuments {
                path: self.path(),
                limit: DOCUMENT_COUNT_LIMIT,
            });
        }
        if INDEX_TYPES.contains(&descriptor.media_type.as_str()) {
            let what = format!("index {}", descriptor.digest);
            let json = self.document(descriptor, &what)?;
            let index =
                Index::from_json(&json).map_err(|source| self.source.json_error(&what, source))?;
            self.require_same_type(&what, descriptor, index.media_type.as_deref())?;
            // Digests make cycles impossible, and the count above bounds depth and breadth.
            self.among(&index.manifests)
        } else {
            self.manifest(descriptor)
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor) -> Result<Option<Image>, ImageError> {
        let what = format!("manifest {}", descriptor.digest);
        let json = self.document(descriptor, &what)?;
        let manifest =
            Manifest::from_json(&json).map_err(|source| self.source.json_error(&what, source))?;
        self.require_same_type(&what, descriptor, manifest.media_type.as_deref())?;

        let what = format!("config {}", manifest.config.digest);
        if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
            let error = self.media_type(&what, &manifest.config.media_type);
            self.no_image.get_or_insert(error);
            return Ok(None);
        }
        let json = self.source.document(&manifest.config, &what)?;
        let config = ImageConfig::from_json(&json)
            .map_err(|source| self.source.json_error(&what, source))?;
        let platform = config.platform();
        if !platform.fits() {
            self.note(&platform);
            return Ok(None);
        }
        let layers = self.layers(manifest.layers, &config)?;
        Ok(Some(Image {
            manifest: descriptor.clone(),
            config,
            config_blob: manifest.config,
            layers,
        }))
    }

    fn document(&mut self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, ImageError> {
        let json = self.source.document(descriptor, what)?;
        self.bytes += json.len() as u64;
        if self.bytes > DOCUMENT_BYTE_LIMIT {
            return Err(ImageError::LargeDocuments {
                path: self.path(),
                limit: DOCUMENT_BYTE_LIMIT,
            });
        }
        Ok(json)
    }

    fn layers(
        &self,
        descriptors: Vec<Descriptor>,
        config: &ImageConfig,
    ) -> Result<Vec<Layer>, ImageError> {
        let diff_ids = &config.rootfs.diff_ids;
        if descriptors.len() > LAYER_LIMIT {
            return Err(ImageError::TooManyLayers {
                path: self.path(),
                found: descriptors.len(),
                limit: LAYER_LIMIT,
            });
        }
        if descriptors.len() != diff_ids.len() {
            let (layers, diff_ids) = (descriptors.len(), diff_ids.len());
            return Err(ImageError::DiffIds {
                path: self.path(),
                layers,
                diff_ids,
            });
        }
        let layer = |(descriptor, diff_id): (Descriptor, &Digest)| match compression(
            &descriptor.media_type,
        ) {
            Some(compression) => Ok(Layer {
                descriptor,
                diff_id: diff_id.clone(),
                compression,
            }),
            None => Err(self.media_type(
                &format!("layer {}", descriptor.digest),
                &descriptor.media_type,
            )),
        };
        descriptors.into_iter().zip(diff_ids).map(layer).collect()
    }

    fn require_same_type(
        &self,
        what: &str,
        descriptor: &Descriptor,
        content: Option<&str>,
    ) -> Result<(), ImageError> {
        match content {
            Some(content) if content != descriptor.media_type => Err(ImageError::Ambiguous {
                path: self.path(),
                what: what.to_owned(),
                descriptor: descriptor.media_type.clone(),
                content: content
                    .chars()
                    .take(100)
                    .collect::<String>()
                    .escape_debug()
                    .to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn media_type(&self, what: &str, found: &str) -> ImageError {
        let found = found
            .chars()
            .take(100)
            .collect::<String>()
            .escape_debug()
            .to_string();
        ImageError::MediaType {
            path: self.path(),
            what: what.to_owned(),
            found,
        }
    }

    fn passed_over(&mut self, descriptor: &Descriptor) {
        match &descriptor.platform {
            Some(platform) if !platform.fits() => self.note(platform),
            _ => {
                let what = format!("manifest {}", descriptor.digest);
                let error = self.media_type(&what, &descriptor.media_type);
                self.no_image.get_or_insert(error);
            }
        }
    }

    fn note(&mut self, platform: &Platform) {
        let shown: String = platform
            .to_string()
            .chars()
            .take(40)
            .collect::<String>()
            .escape_debug()
            .to_string();
        if self.platforms.len() < 10 && !self.platforms.contains(&shown) {
            self.platforms.push(shown);
        }
    }

    fn nothing_found(self) -> ImageError {
        let path = self.path();
        let found = match (self.platforms.as_slice(), self.no_image) {
            ([], Some(error)) => return error,
            ([], None) => "none".to_owned(),
            (platforms, _) => platforms.join(", "),
        };
        ImageError::Platform {
            path,
            wanted: PLATFORM,
            found,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.source.path().to_owned()
    }
}
