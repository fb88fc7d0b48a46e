// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle pull`, and the pull of a run.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use coracle_oci::image::Name;
use coracle_oci::store::{Store, StoredImage};
use coracle_registry::{Client, Options};

use super::Unpacking;
use super::credentials::credentials;
use super::progress::Pulling;
use crate::cli::{Directories, PullArguments};
use crate::command::bytes;
use crate::config::Config;
use crate::log;

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
    let stored = fetch(&store, options, name)?;
    let found = store
        .find(&stored.name)?
        .with_context(|| format!("the image {} was removed meanwhile", name.familiar()))?;
    let image = found.stored.image?;
    let unpacking = Unpacking::new();
    let rootfs = store
        .unpacked(&found.source, &image, config.unpack, Some(&unpacking))
        .with_context(|| format!("cannot unpack the image {}", name.familiar()))?;
    rootfs.write_out()?;
    drop(unpacking);
    println!("{}", with_digest(&stored));
    Ok(0)
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
