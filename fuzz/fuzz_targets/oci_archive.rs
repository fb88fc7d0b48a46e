// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Image archives that somebody else made: mostly layouts that hold an image, with lies, damage and documents of
//! any content. A blob that is read to its end is the one that its digest names, and what is said of an archive
//! has no control characters.
#![no_main]

mod tar;

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::{ImageError, Source};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use tar::{block, record};

#[derive(Arbitrary, Debug)]
enum Archive<'i> {
    Layout(Layout<'i>),
    Docker(Docker<'i>),
    Bytes(&'i [u8]),
}

/// What `docker save` writes, or nearly.
#[derive(Arbitrary, Debug)]
struct Docker<'i> {
    images: Vec<SavedImage<'i>>,
    /// A list of images of any form.
    manifest: Option<&'i [u8]>,
    /// Other names of layers: links, symbolic or not, to what a name leads to.
    links: Vec<(u8, bool, SavedName)>,
    broken: Vec<(u16, u8)>,
    cut: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct SavedImage<'i> {
    tags: Vec<Tag>,
    platform: Platform,
    config: Option<&'i [u8]>,
    layers: Vec<(&'i [u8], Option<SavedName>)>,
}

#[derive(Arbitrary, Debug)]
enum SavedName {
    Layer(u8),
    Link(u8),
    Any(String),
}

impl SavedName {
    fn text(&self) -> String {
        match self {
            Self::Layer(number) => format!("{number}/layer.tar"),
            Self::Link(number) => format!("link{number}"),
            Self::Any(text) => text.clone(),
        }
    }
}

impl Docker<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer {
            lies: &[],
            digests: Vec::new(),
            stream: Vec::new(),
        };
        let (mut list, mut count) = (Vec::new(), 0);
        for (number, image) in self.images.iter().take(4).enumerate() {
            let (mut names, mut diff_ids) = (Vec::new(), Vec::new());
            for (content, name) in image.layers.iter().take(4) {
                let own = format!("{count}/layer.tar");
                count += 1;
                writer.file(&own, content);
                diff_ids.push(Digest::of(Algorithm::Sha256, content).to_string());
                names.push(name.as_ref().map_or(own, SavedName::text));
            }
            let mut config = json!({"rootfs": {"diff_ids": diff_ids}});
            image.platform.write(&mut config);
            let name = format!("{number}.json");
            match image.config {
                Some(any) => writer.file(&name, any),
                None => writer.file(&name, config.to_string().as_bytes()),
            }
            let tags: Vec<&str> = image.tags.iter().filter_map(Tag::text).collect();
            list.push(json!({"Config": name, "RepoTags": tags, "Layers": names}));
        }
        for (number, is_symbolic, target) in self.links.iter().take(8) {
            let (kind, name) = (
                if *is_symbolic { b'2' } else { b'1' },
                format!("link{number}"),
            );
            let target = target.text();
            block(
                &mut writer.stream,
                kind,
                name.as_bytes(),
                target.as_bytes(),
                0,
                b"",
                None,
            );
        }
        match self.manifest {
            Some(any) => writer.file("manifest.json", any),
            None => writer.file("manifest.json", json!(list).to_string().as_bytes()),
        }
        damaged(writer.stream, &self.broken, self.cut)
    }
}

/// A whole archive, with some bytes changed.
fn damaged(mut bytes: Vec<u8>, broken: &[(u16, u8)], cut: Option<u16>) -> Vec<u8> {
    // Two empty blocks end an archive.
    bytes.resize(bytes.len() + 1024, 0);
    for (at, byte) in broken {
        if let Some(target) = bytes.get_mut(usize::from(*at)) {
            *target = *byte;
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.into());
    }
    bytes
}

#[derive(Arbitrary, Debug)]
struct Layout<'i> {
    version: Version,
    images: Vec<Image<'i>>,
    /// Files beside the layout's own, or instead of them.
    files: Vec<(Name, &'i [u8])>,
    /// What is wrong with descriptors, by their number.
    lies: Vec<(u8, Lie<'i>)>,
    /// Bytes to overwrite, by their place in the archive.
    broken: Vec<(u16, u8)>,
    cut: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Image<'i> {
    layers: Vec<(&'i [u8], LayerType)>,
    /// How many indexes it is below of.
    depth: u8,
    platform: Platform,
    told_platform: Option<Platform>,
    tag: Tag,
    long_digests: bool,
    /// A config of any content.
    config: Option<&'i [u8]>,
    manifest: Option<&'i [u8]>,
}

#[derive(Arbitrary, Debug)]
enum Version {
    One,
    Any(String),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum LayerType {
    Tar,
    Gzip,
    DockerGzip,
    Zstd,
}

#[derive(Arbitrary, Debug)]
enum Platform {
    Here,
    Variant(u8),
    Elsewhere,
    Any(String),
}

#[derive(Arbitrary, Debug)]
enum Tag {
    None,
    Latest,
    Long,
    Any(String),
}

#[derive(Arbitrary, Debug)]
enum Name {
    Layout,
    Index,
    Here,
    Blob(u8),
    Any(String),
}

#[derive(Arbitrary, Debug)]
enum Lie<'i> {
    Size(u64),
    Digest(&'i str),
    DigestOf(u8),
    MediaType(&'i str),
    /// The blob is not in the archive.
    Missing,
}

impl Platform {
    fn write(&self, document: &mut Value) {
        let (os, architecture, variant) = match self {
            Self::Here => ("linux", "amd64", None),
            Self::Variant(variant) => ("linux", "amd64", Some(format!("v{}", variant % 5))),
            Self::Elsewhere => ("linux", "arm64", Some("v8".to_owned())),
            Self::Any(text) => (text.as_str(), "amd64", None),
        };
        document["os"] = json!(os);
        document["architecture"] = json!(architecture);
        document["variant"] = json!(variant);
    }
}

impl Tag {
    fn text(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Latest => Some("latest"),
            Self::Long => Some("docker.io/library/busybox:latest"),
            Self::Any(text) => Some(text),
        }
    }
}

impl LayerType {
    fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::DockerGzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An archive that is being written.
struct Writer<'i> {
    lies: &'i [(u8, Lie<'i>)],
    digests: Vec<Digest>,
    stream: Vec<u8>,
}

impl Writer<'_> {
    fn file(&mut self, name: &str, content: &[u8]) {
        if name.len() > 100 {
            let records = record("path", name.as_bytes());
            block(&mut self.stream, b'x', b"pax", b"", 0, &records, None);
        }
        block(
            &mut self.stream,
            b'0',
            name.as_bytes(),
            b"",
            0o644,
            content,
            None,
        );
    }

    /// Adds a blob; gives its descriptor, which may lie.
    fn blob(&mut self, media_type: &str, content: &[u8], algorithm: Algorithm) -> Value {
        let digest = Digest::of(algorithm, content);
        let mut descriptor = json!({
            "mediaType": media_type, "digest": digest.to_string(), "size": content.len(),
        });
        let mut is_missing = false;
        let number = self.digests.len();
        for (_, lie) in self
            .lies
            .iter()
            .filter(|(at, _)| usize::from(*at) == number)
        {
            match lie {
                Lie::Size(size) => descriptor["size"] = json!(size),
                Lie::Digest(text) => descriptor["digest"] = json!(text),
                Lie::DigestOf(other) => {
                    if let Some(other) = self.digests.get(usize::from(*other)) {
                        descriptor["digest"] = json!(other.to_string());
                    }
                }
                Lie::MediaType(text) => descriptor["mediaType"] = json!(text),
                Lie::Missing => is_missing = true,
            }
        }
        if !is_missing {
            self.file(&blob_name(&digest), content);
        }
        self.digests.push(digest);
        descriptor
    }

    fn document(&mut self, kind: &str, document: &Value, algorithm: Algorithm) -> Value {
        let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
        self.blob(&media_type, document.to_string().as_bytes(), algorithm)
    }

    /// Adds an image; gives the descriptor that leads to it.
    fn image(&mut self, image: &Image<'_>) -> Value {
        let algorithm = if image.long_digests {
            Algorithm::Sha512
        } else {
            Algorithm::Sha256
        };
        let layers = &image.layers[..image.layers.len().min(8)];
        let layers: Vec<Value> = layers
            .iter()
            .map(|(content, kind)| self.blob(kind.media_type(), content, algorithm))
            .collect();
        let mut config = json!({"config": {"Cmd": ["true"]}, "rootfs": {
            "diff_ids": layers.iter().map(|layer| &layer["digest"]).collect::<Vec<_>>(),
        }});
        image.platform.write(&mut config);
        let config = match image.config {
            Some(any) => self.blob("application/vnd.oci.image.config.v1+json", any, algorithm),
            None => self.document("config", &config, algorithm),
        };
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut top = match image.manifest {
            Some(any) => self.blob("application/vnd.oci.image.manifest.v1+json", any, algorithm),
            None => self.document("manifest", &manifest, algorithm),
        };
        for _ in 0..image.depth % 4 {
            // Twice, for breadth.
            let index = json!({"schemaVersion": 2, "manifests": [top, top]});
            top = self.document("index", &index, algorithm);
        }
        if let Some(platform) = &image.told_platform {
            platform.write(&mut top["platform"]);
        }
        if let Some(tag) = image.tag.text() {
            top["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        top
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

impl Layout<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer {
            lies: &self.lies,
            digests: Vec::new(),
            stream: Vec::new(),
        };
        let version = match &self.version {
            Version::One => "1.0.0",
            Version::Any(text) => text,
        };
        let layout = json!({"imageLayoutVersion": version}).to_string();
        writer.file("oci-layout", layout.as_bytes());
        let images = &self.images[..self.images.len().min(8)];
        let manifests: Vec<Value> = images.iter().map(|image| writer.image(image)).collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        writer.file("index.json", index.as_bytes());
        for (name, content) in self.files.iter().take(8) {
            let name = match name {
                Name::Layout => "./oci-layout",
                Name::Index => "index.json",
                Name::Here => "./",
                Name::Blob(number) => match writer.digests.get(usize::from(*number)) {
                    Some(digest) => &blob_name(digest),
                    None => "blobs/sha256/",
                },
                Name::Any(text) => text,
            };
            writer.file(name, content);
        }
        damaged(writer.stream, &self.broken, self.cut)
    }
}

/// A file that has no name any more; it is opened by its descriptor.
static FILE: LazyLock<File> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("fuzz-oci_archive-{}", std::process::id()));
    let file = File::create_new(&path).expect("a temporary file");
    std::fs::remove_file(path).expect("its name");
    file
});

fn check_message(error: &ImageError) {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
        cause = error.source();
    }
}

fn read(source: &Source, tag: Option<&str>) -> Result<(), ImageError> {
    let image = source.image(tag)?;
    assert_eq!(image.layers.len(), image.config.rootfs.diff_ids.len());
    image.chain_id();
    for layer in &image.layers {
        let mut content = Vec::new();
        let mut blob = source.blob(&layer.descriptor, "layer")?;
        if blob.read_to_end(&mut content).is_ok() {
            let digest = &layer.descriptor.digest;
            assert_eq!(Digest::of(digest.algorithm(), &content), *digest);
            assert_eq!(content.len() as u64, layer.descriptor.size);
        }
    }
    Ok(())
}

fuzz_target!(|input: (Archive<'_>, Tag)| {
    let (archive, tag) = input;
    let bytes = match archive {
        Archive::Layout(layout) => layout.bytes(),
        Archive::Docker(docker) => docker.bytes(),
        Archive::Bytes(bytes) => bytes.to_vec(),
    };
    FILE.set_len(0).expect("an empty file");
    FILE.write_all_at(&bytes, 0).expect("a small file");

    let path = format!("/proc/self/fd/{}", FILE.as_raw_fd());
    let outcome = Source::open(path).and_then(|source| read(&source, tag.text()));

    if let Err(error) = outcome {
        check_message(&error);
    }
});
