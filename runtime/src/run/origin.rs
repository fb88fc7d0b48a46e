// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tree of files that a container starts from: an image, unpacked once, or a directory.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coracle_oci::image::{ImageConfig, Reference, Source};
use coracle_oci::layer::Options;
use coracle_oci::spec::{self, Overrides};
use coracle_oci::store::Store;
use coracle_oci::user::{self, User};

use crate::cli::{Origin, RunArguments};

/// A tree on the host, which is only read, and what its image says of it.
pub struct Tree {
    pub path: PathBuf,
    pub config: ImageConfig,
}

impl Tree {
    /// Finds the tree that `arguments` ask for; an image is unpacked unless it was before.
    pub fn find(root: &Path, arguments: &RunArguments) -> Result<Self> {
        match arguments.origin_and_command().0 {
            Origin::Image(name) => Self::of_image(root, name),
            Origin::Rootfs(path) => Self::of_directory(path),
        }
    }

    fn of_image(root: &Path, name: &str) -> Result<Self> {
        let reference = Reference::parse(name)?;
        let source = Source::open(&reference.path)?;
        let image = source.image(reference.tag.as_deref())?;
        let rootfs = Store::open(root)?
            .unpacked(&source, &image, Options::default())
            .with_context(|| format!("cannot unpack the image {name}"))?;
        Ok(Self {
            path: rootfs.path,
            config: image.config,
        })
    }

    fn of_directory(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot use {} as a root", path.display()))?;
        ensure!(
            path.is_dir(),
            "cannot use {} as a root: it is not a directory",
            path.display()
        );
        Ok(Self {
            path,
            config: ImageConfig::default(),
        })
    }

    /// Whom the container runs as, by the tree's own user database.
    pub fn user(&self, overrides: &Overrides) -> Result<User> {
        let tree = File::open(&self.path)
            .with_context(|| format!("cannot open {}", self.path.display()))?;
        Ok(user::resolve(&tree, spec::user(&self.config, overrides))?)
    }
}
