// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle rmi`.

use std::path::Path;

use anyhow::{Result, bail};
use coracle_oci::digest::Digest;
use coracle_oci::image::Name;
use coracle_oci::store::{Store, StoreError, StoredImage};

use crate::cli::{Directories, RmiArguments};
use crate::command::{containers, each};
use crate::container::Found;

/// Removes images from the store.
pub fn rmi(directories: &Directories, arguments: &RmiArguments) -> Result<u8> {
    let store = Store::open(&directories.root)?;
    each(&arguments.names, |name| {
        remove(directories, &store, &name.parse()?, arguments.force)
    })
}

/// Removes one image; its tree stays for the containers that were made from it.
fn remove(directories: &Directories, store: &Store, name: &Name, force: bool) -> Result<()> {
    // Its blobs can go only once nobody has a lease on them, this process with them.
    let found = store.find(name)?.map(|found| found.stored);
    let image = found.ok_or_else(|| StoreError::NoSuchImage(Box::new(name.clone())))?;
    let made = containers(directories).list()?;
    if let Some(chain_id) = last_of(store, &image)? {
        let users = made
            .iter()
            .filter(|found| chain_id_of(&found.record.tree).as_ref() == Some(&chain_id));
        refuse_if_used(name, users, force)?;
    }
    let in_use: Vec<Digest> = made
        .iter()
        .filter_map(|found| chain_id_of(&found.record.tree))
        .collect();
    store.remove(&image, &|chain_id| in_use.contains(chain_id))?;
    Ok(())
}

/// What is in the image, if no other name stands for the same. Of one that cannot be read, nothing was made.
fn last_of(store: &Store, stored: &StoredImage) -> Result<Option<Digest>> {
    let Ok(image) = &stored.image else {
        return Ok(None);
    };
    let chain_id = image.chain_id();
    let has_other = store.images()?.into_iter().any(|other| {
        let is_same = matches!(other.image, Ok(image) if image.chain_id() == chain_id);
        is_same && other.name != stored.name
    });
    Ok((!has_other).then_some(chain_id))
}

fn refuse_if_used<'f>(
    name: &Name,
    users: impl Iterator<Item = &'f Found>,
    force: bool,
) -> Result<()> {
    for found in users {
        let (image, container) = (name.familiar(), &found.record.name);
        if found.state.is_alive() {
            bail!(
                "image {image} is in use: container {container} is {}",
                found.state.word()
            );
        }
        if !force {
            bail!(
                "image {image} is in use: container {container} was made from it (remove that first: coracle rm {container}; or use --force)"
            );
        }
    }
    Ok(())
}

/// The name of the content of a tree in the store: `…/trees/<algorithm>/<chain id>/rootfs`.
fn chain_id_of(tree: &Path) -> Option<Digest> {
    let own = tree.parent()?;
    let algorithm = own.parent()?;
    if algorithm.parent()?.file_name()? != "trees" {
        return None;
    }
    let text = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    format!("{}:{}", text(algorithm)?, text(own)?).parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn tree_in_the_store_tells_its_content() {
        let hex = "0123456789abcdef".repeat(4);
        let tree = format!("/var/lib/coracle/images/trees/sha256/{hex}/rootfs");

        let chain_id = chain_id_of(Path::new(&tree)).unwrap();

        assert_eq!(chain_id.to_string(), format!("sha256:{hex}"));
    }

    #[rstest]
    #[case::unknown_yet("")]
    #[case::other_tree("/srv/tree")]
    #[case::no_digest("/x/images/trees/sha256/0123/rootfs")]
    fn other_tree_is_no_images(#[case] tree: &str) {
        assert_eq!(chain_id_of(Path::new(tree)), None);
    }
}
