// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that are dear to make, each under a key of what it was made from.
//!
//! An entry is made under a temporary name and renamed, so it is there whole or not at all. Makers
//! hold the cache's lock; readers need none. What an earlier, interrupted maker left is removed by
//! the next one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// The prefix of unfinished entries.
const UNFINISHED: &str = ".unfinished-";

/// The cache's folder and its rules.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The lab's part of the project's cache: `lab` in `$CORACLE_CACHE`, or in `.cache` at the head
    /// of the source tree.
    ///
    /// # Errors
    ///
    /// If the folder cannot be created.
    pub fn open() -> Result<Self> {
        let parent = std::env::var_os("CORACLE_CACHE").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(".cache"),
            PathBuf::from,
        );
        Self::at(parent.join("lab"))
    }

    /// A cache in a folder of its own.
    ///
    /// # Errors
    ///
    /// If the folder cannot be created.
    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache folder {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot find the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// The cache's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an entry is, whether or not it is there.
    #[must_use]
    pub fn path(&self, family: &str, key: &Key) -> PathBuf {
        self.root.join(format!("{family}-{key}"))
    }

    /// The entry of a family and a key, made by `make` (which fills an empty folder) if it is not
    /// there. Then older entries of the family are removed.
    ///
    /// # Errors
    ///
    /// Those of `make`, and of the file system.
    pub fn entry(
        &self,
        family: &str,
        key: &Key,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(family, key);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock()?;
        if path.exists() {
            return Ok(path);
        }
        self.remove_if(|name| name.starts_with(UNFINISHED))?;
        let unfinished = self.root.join(format!("{UNFINISHED}{family}"));
        fs::create_dir(&unfinished)
            .with_context(|| format!("cannot create {}", unfinished.display()))?;
        make(&unfinished)?;
        fs::rename(&unfinished, &path)
            .with_context(|| format!("cannot put {} in place", path.display()))?;
        self.remove_if(|name| {
            name.strip_prefix(family)
                .and_then(|rest| rest.strip_prefix('-'))
                .is_some_and(|other| other.len() == Key::LENGTH && other != key.0)
        })?;
        Ok(path)
    }

    /// The latest finished entry of a family, whatever its key.
    #[must_use]
    pub fn any(&self, family: &str) -> Option<PathBuf> {
        let names = self.names().ok()?;
        let found = names.into_iter().find(|name| {
            name.strip_prefix(family)
                .and_then(|rest| rest.strip_prefix('-'))
                .is_some_and(|key| key.len() == Key::LENGTH)
        })?;
        Some(self.root.join(found))
    }

    /// Removes everything.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn clear(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.remove_if(|_| true)
    }

    /// The names of everything in the cache, sorted.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)
            .with_context(|| format!("cannot list the cache folder {}", self.root.display()))?
        {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path)
            .with_context(|| format!("cannot create the lock {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    fn remove_if(&self, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        for name in self.names()? {
            if name == "lock" || !unwanted(&name) {
                continue;
            }
            let path = self.root.join(&name);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// A short digest of everything that an entry was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Hexadecimal digits in a key.
    const LENGTH: usize = 16;

    /// The key of these inputs, in this order.
    #[must_use]
    pub fn of<I: AsRef<[u8]>>(inputs: impl IntoIterator<Item = I>) -> Self {
        let mut digest = Sha256::new();
        for input in inputs {
            let bytes = input.as_ref();
            // With the length before each input, moving a byte to its neighbour changes the key.
            digest.update(bytes.len().to_le_bytes());
            digest.update(bytes);
        }
        let hex: String = digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self(hex.chars().take(Self::LENGTH).collect())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("lab")).unwrap();
        (folder, cache)
    }

    #[test]
    fn entry_is_made_once() {
        let (_folder, cache) = cache();
        let key = Key::of(["a"]);
        cache
            .entry("disk", &key, |path| Ok(fs::write(path.join("f"), "first")?))
            .unwrap();

        let path = cache.entry("disk", &key, |_| panic!("made again")).unwrap();

        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "first");
    }

    #[test]
    fn failed_entry_is_absent_and_can_be_made_later() {
        let (_folder, cache) = cache();
        let key = Key::of(["a"]);
        cache
            .entry("disk", &key, |_| anyhow::bail!("no space"))
            .unwrap_err();
        assert!(!cache.path("disk", &key).exists());

        cache.entry("disk", &key, |_| Ok(())).unwrap();

        assert_eq!(
            cache.names().unwrap(),
            [format!("disk-{key}"), "lock".to_owned()]
        );
    }

    #[test]
    fn new_entry_replaces_only_its_own_family() {
        let (_folder, cache) = cache();
        for (family, input) in [("disk", "old"), ("disk-large", "other"), ("disk", "new")] {
            cache.entry(family, &Key::of([input]), |_| Ok(())).unwrap();
        }

        let names = cache.names().unwrap();

        let expected = [
            format!("disk-{}", Key::of(["new"])),
            format!("disk-large-{}", Key::of(["other"])),
            "lock".to_owned(),
        ];
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn key_depends_on_the_borders_between_inputs() {
        assert_ne!(Key::of(["ab", "c"]), Key::of(["a", "bc"]));
    }
}
