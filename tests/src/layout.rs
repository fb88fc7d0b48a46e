// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image layout of a test's own, changed as other tools would, or brought into another form.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tools;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

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
        let index_file = Path::new(&self.0).join("index.json");
        let mut index = json(&fs::read(&index_file).expect("a layout has an index"));
        let mut manifest = json(&self.blob(&index["manifests"][0]));
        let layers = manifest["layers"].as_array_mut();
        for layer in layers.expect("a manifest has layers") {
            assert_eq!(layer["mediaType"], TAR_GZIP);
            let compressed = self.blob_path(layer).display().to_string();
            let contents = tools::run("gzip", &["-dc", &compressed]);
            self.replace(layer, &contents);
            layer["mediaType"] = TAR.into();
        }
        self.replace(&mut index["manifests"][0], manifest.to_string().as_bytes());
        fs::write(index_file, index.to_string()).expect("a copy may be written");
        self
    }

    /// An archive of it, beside it; its path.
    #[must_use]
    pub fn archive(self) -> String {
        let archive = format!("{}.tar", self.0);
        tools::run("tar", &["-C", &self.0, "-cf", &archive, "."]);
        archive
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

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("a layout is of JSON")
}
