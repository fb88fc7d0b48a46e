// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tree of files that a container starts from: an image, unpacked once, or a directory.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, ensure};
use coracle_oci::image::{ImageConfig, Name, PathReference, Reference, Source};
use coracle_oci::spec::{self, Overrides};
use coracle_oci::store::{Found, Lease, Store};
use coracle_oci::user::{self, User};

use super::wishes;
use crate::cli::{Origin, Pull, RunArguments};
use crate::config::Config;
use crate::image::{fetch, unpacked};

/// A tree on the host, which is only read, and what its image says of it.
pub struct Tree {
    pub path: PathBuf,
    pub config: ImageConfig,
    /// Keeps an image's tree in the store.
    pub lease: Option<Lease>,
}

impl Tree {
    /// Finds the tree that `arguments` ask for; an image is unpacked unless it was before.
    pub fn find(root: &Path, config: &Config, arguments: &RunArguments) -> Result<Self> {
        match arguments.origin_and_command().0 {
            Origin::Image(name) => Self::of_image(root, config, name, arguments.pull),
            Origin::Rootfs(path) => Self::of_directory(path),
        }
    }

    fn of_image(root: &Path, config: &Config, text: &str, pull: Pull) -> Result<Self> {
        let store = Store::open(root)?;
        // The blobs of an image of the store stay while it is unpacked.
        let (source, image, _blobs) =
            match Reference::parse(text).map_err(|error| missed(error.into(), text))? {
                Reference::Path(reference) => {
                    let source = Source::open(&reference.path)?;
                    let image = source.image(reference.tag.as_deref())?;
                    (source, image, None)
                }
                Reference::Name(name) => {
                    let found = in_store(&store, config, &name, pull)
                        .map_err(|error| missed(error, text))?;
                    (found.source, found.stored.image?, Some(found.lease))
                }
            };
        let rootfs = unpacked(&store, &source, &image, config, text)?;
        Ok(Self {
            path: rootfs.path,
            config: image.config,
            lease: Some(rootfs.lease),
        })
    }

    fn of_directory(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot use {} as a root", path.display()))?;
        // In what is kept of the container, paths are text.
        ensure!(
            path.to_str().is_some(),
            "cannot use {} as a root: its name is not UTF-8",
            path.display()
        );
        ensure!(
            path.is_dir(),
            "cannot use {} as a root: it is not a directory",
            path.display()
        );
        Ok(Self {
            path,
            config: ImageConfig::default(),
            lease: None,
        })
    }

    /// The signal that asks its container to end.
    pub fn stop_signal(&self) -> Result<i32> {
        wishes::stop_signal(&self.config.config.stop_signal)
    }

    /// Whom the container runs as, by the tree's own user database.
    pub fn user(&self, overrides: &Overrides) -> Result<User> {
        let tree = File::open(&self.path)
            .with_context(|| format!("cannot open {}", self.path.display()))?;
        Ok(user::resolve(&tree, spec::user(&self.config, overrides))?)
    }
}

/// Why an image was not found by `text`, which may have been meant for what this directory has of that name.
fn missed(error: Error, text: &str) -> Error {
    let here = format!("./{text}");
    let is_name = !text.is_empty() && !text.starts_with(['/', '.']);
    match PathReference::parse(&here) {
        Ok(reference) if is_name && reference.path.exists() => error.context(format!(
            "cannot find the image {text} (for what is in this directory, write {here})"
        )),
        _ => error,
    }
}

/// The image of this name, pulled where the user wants that.
fn in_store(store: &Store, config: &Config, name: &Name, pull: Pull) -> Result<Found> {
    let found = match pull {
        Pull::Always => None,
        Pull::Missing | Pull::Never => store.find(name)?,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let familiar = name.familiar();
    ensure!(
        pull != Pull::Never,
        "there is no image {familiar} in the store (coracle pull {familiar} gets it)"
    );
    fetch(store, config.registry.clone(), name)?;
    store
        .find(name)?
        .with_context(|| format!("the image {familiar} was removed meanwhile"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use anyhow::anyhow;

    use super::*;

    #[test]
    fn image_in_this_directory_may_be_meant_by_a_name() {
        // Where tests are run.
        let here = missed(anyhow!("no"), "Cargo.toml:latest").to_string();
        let elsewhere = missed(anyhow!("no"), "nosuch").to_string();

        assert!(here.ends_with("write ./Cargo.toml:latest)"), "{here}");
        assert_eq!(elsewhere, "no");
    }

    #[test]
    fn directory_whose_name_is_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join(OsStr::from_bytes(b"\xff"));
        std::fs::create_dir(&tree).unwrap();

        let error = Tree::of_directory(&tree).err().unwrap();

        assert!(
            error.to_string().ends_with("its name is not UTF-8"),
            "{error}"
        );
    }
}
