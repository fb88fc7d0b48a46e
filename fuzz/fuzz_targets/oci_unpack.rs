// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Layers of any compression, whole or damaged, decoded between applying them and on threads: either way it comes to the
//! same tree, or to an error. The memory that a stream asks for is bounded.
#![no_main]

#[allow(dead_code, reason = "plain entries are enough here")]
mod tar;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::Source;
use coracle_oci::layer::{Limits, Options, Ownership};
use coracle_oci::tree_hash::tree_hash;
use coracle_oci::unpack::unpack;
use libfuzzer_sys::fuzz_target;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use tar::block;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Compression {
    None,
    /// As it is, for a decoder.
    Gzip,
    Zstd,
    /// Compressed, in as many frames.
    ZstdFrames(u8),
}

#[derive(Arbitrary, Debug)]
struct Layer<'i> {
    files: Vec<(u8, &'i [u8])>,
    /// Any bytes instead of files.
    raw: Option<&'i [u8]>,
    compression: Compression,
    /// Bytes of the blob to overwrite.
    broken: Vec<(u16, u8)>,
    cut: Option<u16>,
    is_said_wrong: bool,
}

impl Layer<'_> {
    fn content(&self) -> Vec<u8> {
        if let Some(raw) = self.raw {
            return raw.to_vec();
        }
        let mut stream = Vec::new();
        for (name, content) in self.files.iter().take(16) {
            let name = format!("{}", name % 8);
            block(
                &mut stream,
                b'0',
                name.as_bytes(),
                b"",
                0o644,
                content,
                None,
            );
        }
        stream
    }

    fn blob(&self, content: &[u8]) -> (Vec<u8>, &'static str) {
        let (mut blob, kind) = match self.compression {
            Compression::None => (content.to_vec(), "tar"),
            Compression::Gzip => (content.to_vec(), "tar+gzip"),
            Compression::Zstd => (content.to_vec(), "tar+zstd"),
            Compression::ZstdFrames(count) => {
                let size = content.len() / (usize::from(count % 4) + 1) + 1;
                let frame = |part: &[u8]| compress_to_vec(part, CompressionLevel::Fastest);
                (content.chunks(size).flat_map(frame).collect(), "tar+zstd")
            }
        };
        for (at, byte) in &self.broken {
            if let Some(target) = blob.get_mut(usize::from(*at)) {
                *target = *byte;
            }
        }
        if let Some(cut) = self.cut {
            blob.truncate(cut.into());
        }
        (blob, kind)
    }
}

/// The directory that all is in.
fn ground() -> &'static Path {
    static GROUND: OnceLock<PathBuf> = OnceLock::new();
    GROUND.get_or_init(|| std::env::temp_dir().join(format!("oci-unpack-{}", std::process::id())))
}

fn write_blob(media_type: &str, content: &[u8]) -> Value {
    let digest = Digest::of(Algorithm::Sha256, content);
    let path = ground().join("image/blobs/sha256").join(digest.hex());
    fs::write(path, content).expect("a blob can be written");
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
}

fn write_image(layers: &[Layer<'_>]) {
    let _ = fs::remove_dir_all(ground());
    let image = ground().join("image");
    fs::create_dir_all(image.join("blobs/sha256")).expect("a temporary directory can be made");
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let content = layer.content();
        let (blob, kind) = layer.blob(&content);
        descriptors.push(write_blob(
            &format!("application/vnd.oci.image.layer.v1.{kind}"),
            &blob,
        ));
        let said: &[u8] = if layer.is_said_wrong {
            b"other"
        } else {
            &content
        };
        diff_ids.push(Digest::of(Algorithm::Sha256, said).to_string());
    }
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}});
    let config = write_blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({"config": config, "layers": descriptors}).to_string();
    let manifest = write_blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    fs::write(
        image.join("index.json"),
        json!({"manifests": [manifest]}).to_string(),
    )
    .expect("an index can be written");
    fs::write(
        image.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("a file can be written");
}

fn unpacked(decoders: usize) -> Result<Digest, String> {
    let source = Source::open(ground().join("image")).expect("the layout is whole");
    let image = source
        .image(None)
        .expect("the image is whole but for its layers");
    let root = ground().join(format!("root{decoders}"));
    fs::create_dir(&root).expect("the root can be made");
    let options = Options {
        limits: Limits {
            bytes: 1 << 20,
            entries: 100,
        },
        ownership: Ownership::Caller,
        decoders: Some(decoders),
    };
    let opened = File::open(&root).expect("the root can be opened");
    unpack(&source, &image, opened.into(), options, None).map_err(|error| error.to_string())?;
    Ok(tree_hash(&root).expect("the tree can be read"))
}

fuzz_target!(|layers: Vec<Layer<'_>>| {
    write_image(&layers[..layers.len().min(4)]);

    let alone = unpacked(0);
    let together = unpacked(2);

    assert_eq!(alone, together);
});
