// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle pull`, and the pull of a run.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use coracle_oci::image::Name;
use coracle_oci::store::{Rootfs, Store, StoreError, StoredImage};
use coracle_oci::unpack::UnpackError;
use coracle_registry::{Client, Options};

use super::credentials::credentials;
use super::progress::Pulling;
use super::unpack;
use crate::cli::{Directories, PullArguments};
use crate::config::Config;
use crate::log;
use crate::print::print;
use crate::table::bytes;

/// Gets an image from a registry into the store, and unpacks it.
pub fn pull(directories: &Directories, config: &Config, arguments: &PullArguments) -> Result<u8> {
    let name = &arguments.name;
    let mut options = config.registry.clone();
    if let Some(login) = &arguments.creds {
        let credentials = credentials(login, arguments.password_stdin)?;
        let registry = name.registry().to_owned();
        options.credentials.insert(registry, credentials);
    }
    if arguments.insecure {
        options.insecure.push(name.registry().to_owned());
    }
    let store = Store::open(&directories.root)?;
    let mut stored = fetch(&store, options.clone(), name)?;
    let rootfs = match unpacked(&store, config, &stored) {
        // What was damaged in the store is gone now, and comes anew.
        Err(error) if is_damage(&error) => {
            stored = fetch(&store, options, name)?;
            unpacked(&store, config, &stored)?
        }
        outcome => outcome?,
    };
    rootfs.write_out()?;
    print(&format!("{}\n", with_digest(&stored)))?;
    Ok(0)
}

/// The tree of an image that was pulled.
fn unpacked(store: &Store, config: &Config, stored: &StoredImage) -> Result<Rootfs> {
    let name = stored.name.familiar();
    let found = store
        .find(&stored.name)?
        .with_context(|| format!("the image {name} was removed meanwhile"))?;
    unpack::unpacked(store, &found.source, &found.stored.image?, config, &name)
}

fn is_damage(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(StoreError::Unpack(UnpackError::Damaged { .. }))
    )
}

/// Gets an image from its registry into the store, and tells of it on standard error.
///
/// A signal ends the process in the middle; what is half there has a temporary name then, and whoever opens the store
/// next removes it.
pub fn fetch(store: &Store, options: Options, name: &Name) -> Result<StoredImage> {
    let familiar = name.familiar();
    let what = || format!("cannot pull the image {familiar}");
    let silent = !io::stderr().is_terminal();
    if silent {
        log::tell(format_args!("pulling {familiar} from {}", name.registry()));
    }
    let receiving = store.receive()?;
    let progress = Pulling::new();
    let pulled = Client::new(options)
        .pull(name, &receiving, &progress)
        .with_context(what)?;
    let image = pulled.image;
    let stored = receiving
        .commit(name, &image.media_type, &image.digest, image.size)
        .with_context(what)?;
    let amount = bytes(progress.pulled());
    drop(progress);
    log::tell(format_args!("pulled {familiar}: {amount}"));
    Ok(stored)
}

/// The image's name, with what it stands for now.
fn with_digest(stored: &StoredImage) -> String {
    let familiar = stored.name.familiar();
    match stored.name.digest() {
        Some(_) => familiar,
        None => format!("{familiar}@{}", stored.digest),
    }
}
