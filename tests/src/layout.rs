// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image layout of a test's own, changed as other tools would, or brought into another form.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::tools;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A directory with one image, tagged `latest`; it prints as what `coracle run` takes for IMAGE.
#[derive(Debug)]
pub struct Layout(String);

impl Layout {
    /// Copies the layout `from` to the directory `to`, which is not there yet.
    pub(crate) fn copy(from: &Path, to: &Path) -> Self {
        let [from, to] = [from, to].map(|path| path.display().to_string());
        tools::run("cp", &["-r", &from, &to]);
        Self(to)
    }

    /// The directory of its blobs.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        Path::new(&self.0).join("blobs/sha256")
    }

    /// Sets the image's configuration, in the words of `umoci config`.
    pub fn configure(&self, words: &[&str]) {
        let image = self.to_string();
        tools::run("umoci", &[&["config", "--image", &image], words].concat());
    }

    /// Adds the archive `layer` to the image, whatever is in it.
    pub fn add_layer(&self, layer: &Path) {
        let (image, layer) = (self.to_string(), layer.display().to_string());
        tools::run("umoci", &["raw", "add-layer", "--image", &image, &layer]);
    }

    /// The same image with layers that are not compressed.
    #[must_use]
    pub fn with_plain_layers(self) -> Self {
        self.with_layers(TAR, |contents| contents)
    }

    /// The same image with layers that `compress` has compressed, as zstd does.
    #[must_use]
    pub fn with_zstd_layers(self, compress: fn(Vec<u8>) -> Vec<u8>) -> Self {
        self.with_layers(TAR_ZSTD, compress)
    }

    fn with_layers(self, media_type: &str, made_of: fn(Vec<u8>) -> Vec<u8>) -> Self {
        let mut index = self.index();
        let mut manifest = parsed(&self.blob(&index["manifests"][0]));
        let layers = manifest["layers"].as_array_mut();
        for layer in layers.expect("a manifest has layers") {
            let contents = self.plain(layer);
            self.replace(layer, &made_of(contents));
            layer["mediaType"] = media_type.into();
        }
        self.replace(&mut index["manifests"][0], manifest.to_string().as_bytes());
        self.write_index(&index);
        self
    }

    /// The same image in an index, behind those for other platforms and processors, of which there is nothing but their
    /// names.
    #[must_use]
    pub fn in_an_index(self) -> Self {
        let mut index = self.index();
        let ours = index["manifests"][0].clone();
        let of = |architecture: &str, variant: &str, digest: &Value| {
            let platform = json!({"os": "linux", "architecture": architecture, "variant": variant});
            json!({"mediaType": ours["mediaType"], "digest": digest, "size": ours["size"], "platform": platform})
        };
        let absent = |digit: &str| json!(format!("sha256:{}", digit.repeat(64)));
        let variants = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            of("arm64", "v8", &absent("a")),
            of("amd64", "v3", &absent("b")),
            of("amd64", "", &ours["digest"]),
        ]});
        let descriptor = &mut index["manifests"][0];
        self.replace(descriptor, variants.to_string().as_bytes());
        descriptor["mediaType"] = INDEX.into();
        self.write_index(&index);
        self
    }

    /// The same image as `docker save` writes it, under the name `name`; the archive's path.
    #[must_use]
    pub fn docker_archive(self, name: &str) -> String {
        let manifest = parsed(&self.blob(&self.index()["manifests"][0]));
        let directory = Path::new(&self.0).join("docker");
        let put = |file: &str, contents: &[u8]| {
            let file = directory.join(file);
            fs::create_dir_all(file.parent().expect("it is below the directory"))
                .and_then(|()| fs::write(&file, contents))
                .expect("a copy may be written");
        };
        put("config.json", &self.blob(&manifest["config"]));
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let layers: Vec<_> = layers
            .enumerate()
            .map(|(number, layer)| {
                let file = format!("{number}/layer.tar");
                put(&file, &self.plain(layer));
                file
            })
            .collect();
        let list = json!([{"Config": "config.json", "RepoTags": [name], "Layers": layers}]);
        put("manifest.json", list.to_string().as_bytes());
        Self(directory.display().to_string()).archive()
    }

    /// An archive of it, beside it; its path.
    #[must_use]
    pub fn archive(self) -> String {
        let archive = format!("{}.tar", self.0);
        tools::run("tar", &["-C", &self.0, "-cf", &archive, "."]);
        archive
    }

    fn index(&self) -> Value {
        parsed(&fs::read(self.index_file()).expect("a layout has an index"))
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.index_file(), index.to_string()).expect("a copy may be written");
    }

    fn index_file(&self) -> PathBuf {
        Path::new(&self.0).join("index.json")
    }

    /// The archive that is a layer, without its compression.
    fn plain(&self, layer: &Value) -> Vec<u8> {
        assert_eq!(layer["mediaType"], TAR_GZIP);
        tools::run(
            "gzip",
            &["-dc", &self.blob_path(layer).display().to_string()],
        )
    }

    /// Writes `contents` as the blob that `descriptor` names from now on.
    fn replace(&self, descriptor: &mut Value, contents: &[u8]) {
        let file = Path::new(&self.0).join("new blob");
        fs::write(&file, contents).expect("a copy may be written");
        let line = tools::run("sha256sum", &[&file.display().to_string()]);
        let digest = String::from_utf8_lossy(&line[..64]);
        descriptor["digest"] = format!("sha256:{digest}").into();
        descriptor["size"] = contents.len().into();
        fs::rename(file, self.blob_path(descriptor)).expect("a copy may be written");
    }

    fn blob(&self, descriptor: &Value) -> Vec<u8> {
        fs::read(self.blob_path(descriptor)).expect("a layout has the blobs that it names")
    }

    fn blob_path(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        self.blobs().join(digest.trim_start_matches("sha256:"))
    }
}

impl Display for Layout {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:latest", self.0)
    }
}

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("a layout is of JSON")
}
