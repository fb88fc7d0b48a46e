// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The names of images, in the index of the store's layout.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::debug;

use super::error::{StoreError, io_error};
use super::{Store, files};
use crate::image::{Descriptor, Name, REF_NAME};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The index as it stands in its file, so that what other tools put there stays.
pub(super) struct Names(Value);

impl Names {
    /// All entries that can be read, with their names.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Option<Name>, Descriptor)> {
        self.manifests().filter_map(|entry| {
            let descriptor: Descriptor = serde_json::from_value(entry.clone()).ok()?;
            let name = descriptor.annotations.get(REF_NAME);
            let name = name.and_then(|name| name.parse().ok());
            Some((name, descriptor))
        })
    }

    /// Those that have one of our names.
    pub(super) fn named(&self) -> impl Iterator<Item = (Name, Descriptor)> {
        self.entries()
            .filter_map(|(name, descriptor)| Some((name?, descriptor)))
    }

    pub(super) fn find(&self, wanted: &Name) -> Option<(Name, Descriptor)> {
        let is_meant = |(name, descriptor): &(Name, Descriptor)| match wanted.digest() {
            None => name == wanted,
            Some(digest) => {
                let of = |name: &Name| (name.registry().to_owned(), name.repository().to_owned());
                of(name) == of(wanted) && descriptor.digest == *digest
            }
        };
        self.named().find(is_meant)
    }

    /// Lets `name` stand for `descriptor`, and for nothing else.
    pub(super) fn set(&mut self, name: &Name, descriptor: &Descriptor) {
        self.remove(name);
        let mut entry = json!(descriptor);
        entry["annotations"] = json!({REF_NAME: name.to_string()});
        if let Some(manifests) = self.manifests_mut() {
            manifests.push(entry);
        }
    }

    /// Takes a name away; says whether it was there.
    pub(super) fn remove(&mut self, name: &Name) -> bool {
        let text = name.to_string();
        let Some(manifests) = self.manifests_mut() else {
            return false;
        };
        let before = manifests.len();
        manifests.retain(|entry| entry["annotations"][REF_NAME].as_str() != Some(&text));
        manifests.len() < before
    }

    fn manifests(&self) -> impl Iterator<Item = &Value> {
        self.0["manifests"].as_array().into_iter().flatten()
    }

    /// The list; `None` cannot be, since the index is an object.
    fn manifests_mut(&mut self) -> Option<&mut Vec<Value>> {
        let list = self.0.as_object_mut()?.entry("manifests");
        let list = list.or_insert(Value::Null);
        if !list.is_array() {
            *list = json!([]);
        }
        list.as_array_mut()
    }
}

impl Store {
    /// Makes the files that a layout has, where they are missing.
    pub(super) fn make_layout(&self) -> Result<(), StoreError> {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []});
        let missing = |path: &PathBuf| !path.exists();
        for (name, content) in [
            ("oci-layout", LAYOUT.to_vec()),
            ("index.json", index.to_string().into_bytes()),
        ] {
            let path = self.images.join(name);
            if missing(&path) {
                let _lock = self.locks.index()?;
                if missing(&path) {
                    self.replace(&path, &content)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_index(&self) -> Result<Names, StoreError> {
        let path = self.index();
        let json = fs::read(&path).map_err(io_error("read", &path))?;
        let invalid = |source| StoreError::Index {
            path: path.clone(),
            source,
        };
        let index: Value = serde_json::from_slice(&json).map_err(invalid)?;
        if !index.is_object() {
            return Err(invalid(serde::de::Error::custom("it is not an object")));
        }
        Ok(Names(index))
    }

    /// Writes the index; the caller has its lock. It takes the room to write one without some of the names, too: images
    /// can then be removed from a disk that is full.
    pub(super) fn write_index(&self, names: &Names) -> Result<(), StoreError> {
        let (index, content) = (self.index(), names.0.to_string());
        self.replace(&index, content.as_bytes())?;
        if let Err(error) = files::reserve(&temporary(&index), content.len()) {
            debug!(%error, "there is no room to write the index of images again");
        }
        Ok(())
    }

    fn index(&self) -> PathBuf {
        self.images.join("index.json")
    }

    /// Replaces one of the layout's files; the caller has the index' lock.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        files::replace(path, &temporary(path), content).map_err(io_error("write", path))
    }
}

/// What a file of the layout is written as. Not among temporaries, which anyone removes whose lock is free.
fn temporary(path: &Path) -> PathBuf {
    path.with_extension("new")
}
