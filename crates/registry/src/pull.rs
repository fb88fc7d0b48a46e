// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a name to an image's blobs: documents one after the other, then blobs side by side.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_oci::digest::{Algorithm, ContentError, Digest};
use coracle_oci::image::{Descriptor, ImageConfig, Manifest, Name, PLATFORM, Platform, candidates};
use ureq::http::header::{CONTENT_TYPE, HeaderName};

use crate::content::{Content, Pull};
use crate::document::{ACCEPTED, Document, DocumentError, require_image, require_layers};
use crate::error::RegistryError;
use crate::options::Options;
use crate::progress::{Progress, State};
use crate::retry::{Attempts, Stop};
use crate::session::Session;
use crate::show::{quoted, shown};
use crate::sink::Sink;

/// Header with a manifest's digest (distribution-spec, "Pulling manifests").
const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");
/// Most platforms that an error names.
const SHOWN_PLATFORMS: usize = 10;
/// Most bytes of all indexes and manifests that are read to find an image, as a multiple of the most of one.
const DOCUMENTS_AT_ONCE: u64 = 4;

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pulled {
    /// What the name stands for: the manifest, or an index with manifests for several platforms, of which only this
    /// platform's is in the sink.
    pub image: Descriptor,
    /// The manifest, which is in the sink with all that it names.
    pub manifest: Descriptor,
}

/// A document's bytes, as its digest is of them.
struct Raw {
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

/// The manifest for this platform, and what was read on the way to it.
struct Found {
    manifest: Manifest,
    /// The manifest.
    last: Raw,
    /// What was read before it: indexes, and manifests that turned out to be for others.
    before: Vec<Raw>,
}

/// What was passed over on the way to a manifest, to be told of if there is none.
#[derive(Default)]
struct PassedOver {
    platforms: Vec<String>,
    /// The first of what is no image.
    no_image: Option<RegistryError>,
}

impl PassedOver {
    fn platform(&mut self, platform: &Platform) {
        let platform = shown(&platform.to_string());
        // Signatures and the like are for nothing.
        if !platform.starts_with("unknown/")
            && self.platforms.len() < SHOWN_PLATFORMS
            && !self.platforms.contains(&platform)
        {
            self.platforms.push(platform);
        }
    }
}

pub(crate) fn pull(
    options: &Options,
    session: &Session<'_>,
    image: &Name,
    sink: &dyn Sink,
    progress: &dyn Progress,
) -> Result<Pulled, RegistryError> {
    let puller = Puller {
        options,
        image,
        sink,
        pull: Pull {
            session,
            progress,
            stop: Stop::default(),
            retry: options.retry,
            stall: options.timeouts.stall,
        },
    };
    let found = puller.manifest()?;
    puller.blobs(&found.manifest)?;
    // What names others comes after them.
    for raw in [&found.last].into_iter().chain(found.before.iter().rev()) {
        puller.store_bytes(&raw.descriptor, &raw.bytes)?;
    }
    let manifest = found.last.descriptor;
    let first = found.before.into_iter().next();
    Ok(Pulled {
        image: first.map_or_else(|| manifest.clone(), |raw| raw.descriptor),
        manifest,
    })
}

struct Puller<'p> {
    options: &'p Options,
    image: &'p Name,
    sink: &'p dyn Sink,
    pull: Pull<'p>,
}

impl Puller<'_> {
    /// Finds the manifest for this platform, through indexes where there are some.
    fn manifest(&self) -> Result<Found, RegistryError> {
        let what = format!("image {}", self.image);
        // The digest goes before the tag.
        let wanted = match (self.image.digest(), self.image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let (mut document, mut raw) = self.document(&wanted, &what, None)?;
        let mut before = Vec::new();
        let mut passed_over = PassedOver::default();
        let mut bytes = 0;
        // Depth first, as an index has them; that what is read is bounded bounds depth and cycles as well.
        let mut next: Vec<Descriptor> = Vec::new();
        for _ in 0..self.options.limits.documents {
            bytes += raw.bytes.len() as u64;
            self.require_bytes(bytes)?;
            match document {
                Document::Manifest(manifest) => {
                    if self.is_ours(&manifest, &raw, &mut passed_over)? {
                        return Ok(Found {
                            manifest,
                            last: raw,
                            before,
                        });
                    }
                }
                Document::Index(index) => {
                    let fitting = candidates(&index.manifests, |entry| {
                        self.pass_over(entry, &mut passed_over)
                    });
                    next.splice(..0, fitting.into_iter().cloned());
                }
            }
            before.push(raw);
            if next.is_empty() {
                return Err(self.nothing_found(passed_over));
            }
            let entry = next.remove(0);
            let what = format!("manifest {} of {}", entry.digest, self.image);
            (document, raw) = self.document(&entry.digest.to_string(), &what, Some(&entry))?;
        }
        Err(RegistryError::TooLarge {
            host: self.pull.session.host().to_owned(),
            what: format!("the tree of indexes of {}", self.image),
            limit: format!("{} documents", self.options.limits.documents),
        })
    }

    /// Bounds what is held until the image is found: what is read of an index takes several times its size.
    fn require_bytes(&self, bytes: u64) -> Result<(), RegistryError> {
        let limit = self
            .options
            .limits
            .document
            .saturating_mul(DOCUMENTS_AT_ONCE);
        if bytes <= limit {
            return Ok(());
        }
        Err(RegistryError::TooLarge {
            host: self.pull.session.host().to_owned(),
            what: format!("the tree of indexes of {}", self.image),
            limit: format!("{limit} bytes"),
        })
    }

    /// Notes an entry of an index that is not looked at.
    fn pass_over(&self, entry: &Descriptor, passed_over: &mut PassedOver) {
        match &entry.platform {
            Some(platform) if !platform.fits() => passed_over.platform(platform),
            _ => {
                let source = DocumentError::MediaType(quoted(&entry.media_type));
                let error = self.unusable(&format!("manifest {}", entry.digest), source);
                passed_over.no_image.get_or_insert(error);
            }
        }
    }

    /// Whether a manifest is of an image for this platform, by its config, which is stored; noted where not.
    fn is_ours(
        &self,
        manifest: &Manifest,
        raw: &Raw,
        passed_over: &mut PassedOver,
    ) -> Result<bool, RegistryError> {
        let what = format!("manifest {}", raw.descriptor.digest);
        if let Err(source) = require_image(manifest) {
            passed_over
                .no_image
                .get_or_insert_with(|| self.unusable(&what, source));
            return Ok(false);
        }
        let config = &manifest.config;
        if config.size > self.options.limits.document {
            return Err(RegistryError::TooLarge {
                host: self.pull.session.host().to_owned(),
                what: format!("config {}", config.digest),
                limit: format!("{} bytes", self.options.limits.document),
            });
        }
        // It is small, and a store does not give it back: read even where it is there.
        let bytes = self.bytes(config)?;
        let parsed = ImageConfig::from_json(&bytes).map_err(|error| {
            let source = DocumentError::Json(shown(&error.to_string()));
            self.unusable(&format!("config {}", config.digest), source)
        })?;
        self.store_bytes(config, &bytes)?;
        let platform = parsed.platform();
        if !platform.fits() {
            passed_over.platform(&platform);
            return Ok(false);
        }
        require_layers(manifest, self.options.limits.layers)
            .map_err(|source| self.unusable(&what, source))?;
        Ok(true)
    }

    /// Reads a small blob whole.
    fn bytes(&self, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        // Nobody was told of it yet.
        self.with_content(blob, &(), |content| {
            bytes.clear();
            content.read_to_end(&mut bytes).map(|_| ())
        })?;
        Ok(bytes)
    }

    /// Reads a document by tag or digest.
    fn document(
        &self,
        name: &str,
        what: &str,
        descriptor: Option<&Descriptor>,
    ) -> Result<(Document, Raw), RegistryError> {
        let mut attempts = Attempts::new(self.options.retry);
        let mut was_damaged = false;
        loop {
            let error = match self.document_once(name, what, descriptor) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            // Once it can be an accident of the way.
            if matches!(error, RegistryError::Content { .. }) && !was_damaged {
                was_damaged = true;
                self.pull.progress.retrying(&error, Duration::ZERO);
                continue;
            }
            self.pull.pause(&mut attempts, error)?;
        }
    }

    fn document_once(
        &self,
        name: &str,
        what: &str,
        descriptor: Option<&Descriptor>,
    ) -> Result<(Document, Raw), RegistryError> {
        let answer = self
            .pull
            .session
            .get("manifests", name, what, &ACCEPTED, 0)?;
        let host = answer.host().to_owned();
        let content_type = answer.header(CONTENT_TYPE).map(str::to_owned);
        let announced: Option<Digest> = answer
            .header(DIGEST_HEADER)
            .and_then(|digest| digest.parse().ok());
        let bytes = answer.document(self.options.limits.document)?;

        // A digest that was asked for counts, not the one that the registry gives instead.
        let expected = name.parse().ok().or(announced);
        let algorithm = expected
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let found = Digest::of(algorithm, &bytes);
        let refuse = |source| RegistryError::Content {
            host: host.clone(),
            what: what.to_owned(),
            source,
        };
        if let Some(expected) = expected
            && expected != found
        {
            return Err(refuse(ContentError::Digest { expected, found }));
        }
        let size = bytes.len() as u64;
        if let Some(descriptor) = descriptor
            && descriptor.size != size
        {
            return Err(refuse(ContentError::Size {
                digest: found,
                expected: descriptor.size,
                found: size,
            }));
        }
        let announced = match descriptor {
            Some(descriptor) if !descriptor.media_type.is_empty() => {
                Some(descriptor.media_type.as_str())
            }
            _ => content_type.as_deref(),
        };
        let (document, media_type) =
            Document::parse(announced, &bytes).map_err(|source| self.unusable(what, source))?;
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: found,
            size,
            platform: descriptor.and_then(|descriptor| descriptor.platform.clone()),
            annotations: BTreeMap::new(),
        };
        Ok((document, Raw { bytes, descriptor }))
    }

    /// Pulls a manifest's blobs.
    fn blobs(&self, manifest: &Manifest) -> Result<(), RegistryError> {
        let blobs = self.distinct(manifest)?;
        self.pull.progress.begin(&blobs);
        let (config, layers) = blobs.split_first().unwrap_or((&manifest.config, &[]));
        // It is there since the platform was looked for.
        self.pull.progress.blob(config, State::Finished);
        let queue = Mutex::new(layers.iter().collect::<VecDeque<_>>());
        let failure = Mutex::new(None);
        let work = || {
            loop {
                // On a line of its own, or the lock would be held while the blob is pulled.
                let next = locked(&queue).pop_front();
                let Some(layer) = next else { return };
                if let Err(error) = self.blob(layer) {
                    locked(&failure).get_or_insert(error);
                    self.pull.stop.stop();
                    return;
                }
            }
        };
        thread::scope(|scope| {
            // This thread is one of them, so that there always is one.
            for _ in 1..self.options.parallel.get().min(layers.len()) {
                let spawned = thread::Builder::new()
                    .name("pull".to_owned())
                    .spawn_scoped(scope, work);
                if let Err(error) = spawned {
                    tracing::debug!("pulling with fewer threads: {error}");
                }
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Config and layers, each blob once.
    fn distinct(&self, manifest: &Manifest) -> Result<Vec<Descriptor>, RegistryError> {
        let mut sizes = BTreeMap::new();
        let mut blobs = Vec::new();
        for blob in [&manifest.config].into_iter().chain(&manifest.layers) {
            match sizes.insert(&blob.digest, blob.size) {
                None => blobs.push(blob.clone()),
                Some(size) if size == blob.size => {}
                Some(_) => {
                    let source = DocumentError::Sizes(blob.digest.to_string());
                    return Err(self.unusable(&format!("image {}", self.image), source));
                }
            }
        }
        let total = blobs
            .iter()
            .fold(0_u64, |total, blob| total.saturating_add(blob.size));
        if total > self.options.limits.image {
            return Err(RegistryError::TooLarge {
                host: self.pull.session.host().to_owned(),
                what: format!("image {} ({total} bytes)", self.image),
                limit: format!("{} bytes", self.options.limits.image),
            });
        }
        Ok(blobs)
    }

    fn blob(&self, blob: &Descriptor) -> Result<(), RegistryError> {
        self.pull.stop.check()?;
        if self.contains(blob)? {
            self.pull.progress.blob(blob, State::Exists);
            return Ok(());
        }
        self.with_content(blob, self.pull.progress, |content| {
            self.sink.store(blob, content)
        })?;
        self.pull.progress.blob(blob, State::Finished);
        Ok(())
    }

    /// Has a blob's content read; once more where it was not what its digest says.
    fn with_content(
        &self,
        blob: &Descriptor,
        progress: &dyn Progress,
        mut read: impl FnMut(&mut dyn io::Read) -> io::Result<()>,
    ) -> Result<(), RegistryError> {
        let mut was_damaged = false;
        loop {
            let mut content = Content::new(&self.pull, blob, progress);
            let result = read(&mut content);
            let has_ended = content.has_ended();
            match (content.into_failure(), result) {
                (None, Ok(())) if has_ended => return Ok(()),
                (None, Ok(())) => {
                    let reason = "it was not read to its end";
                    return Err(self.unstored(blob, io::Error::other(reason)));
                }
                (None, Err(error)) => return Err(self.unstored(blob, error)),
                // Once it can be an accident of the way.
                (Some(error @ RegistryError::Content { .. }), _) if !was_damaged => {
                    was_damaged = true;
                    self.pull.progress.retrying(&error, Duration::ZERO);
                }
                (Some(error), _) => return Err(error),
            }
        }
    }

    fn contains(&self, blob: &Descriptor) -> Result<bool, RegistryError> {
        self.sink
            .contains(blob)
            .map_err(|error| self.unstored(blob, error))
    }

    fn store_bytes(&self, blob: &Descriptor, bytes: &[u8]) -> Result<(), RegistryError> {
        if self.contains(blob)? {
            return Ok(());
        }
        self.sink
            .store(blob, &mut &bytes[..])
            .map_err(|error| self.unstored(blob, error))
    }

    fn unstored(&self, blob: &Descriptor, source: io::Error) -> RegistryError {
        RegistryError::Store {
            digest: blob.digest.clone(),
            source,
        }
    }

    fn unusable(&self, what: &str, source: DocumentError) -> RegistryError {
        RegistryError::Document {
            host: self.pull.session.host().to_owned(),
            what: what.to_owned(),
            source,
        }
    }

    fn nothing_found(&self, passed_over: PassedOver) -> RegistryError {
        let found = match (passed_over.platforms.as_slice(), passed_over.no_image) {
            ([], Some(error)) => return error,
            ([], None) => "none".to_owned(),
            (platforms, _) => platforms.join(", "),
        };
        RegistryError::Platform {
            image: self.image.to_string(),
            wanted: PLATFORM,
            found,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
