// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The image that is pulled, and servers of it.

use coracle_oci::image::{Name, Source};
use coracle_oci::store::{Store, StoredImage};
use coracle_registry::{Client, Options};

use crate::common::image::{Repository, digest};
use crate::common::server::{Reply, Request, Server};
use crate::common::{pull, quick, whole};

/// What is pulled.
pub fn layer() -> Vec<u8> {
    (0..100_000_u32)
        .map(|number| (number % 251) as u8)
        .collect()
}

/// A server without TLS, and options for it.
pub fn serve(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Server, Options) {
    let server = Server::start(reply);
    let options = Options {
        insecure: vec![server.host()],
        ..quick()
    };
    (server, options)
}

/// Serves an image, but for what `fault` replies to.
pub fn serve_but(
    fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Options) {
    let repository = Repository::with_image(&[layer()]);
    serve(move |request| fault(request).unwrap_or_else(|| repository.reply(request)))
}

/// Whether that is asked for.
pub fn is_layer(request: &Request) -> bool {
    request.path.ends_with(&digest(&layer()).to_string())
}

/// Layers of the image that was pulled.
pub fn layers_of(directory: &tempfile::TempDir) -> usize {
    Source::open(directory.path())
        .unwrap()
        .image(Some("pulled"))
        .unwrap()
        .layers
        .len()
}

/// Why a pull fails.
pub fn failure(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> String {
    let (server, options) = serve(reply);
    let (_directory, result) = pull(options, &server.image());
    whole(&result.unwrap_err())
}

/// Pulls into a store, and gives the image its name there.
pub fn pull_into_store(options: Options, name: &str) -> StoredImage {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    let receiving = store.receive().unwrap();
    let name: Name = name.parse().unwrap();
    let pulled = Client::new(options).pull(&name, &receiving, &()).unwrap();
    let image = pulled.image;
    receiving
        .commit(&name, &image.media_type, &image.digest, image.size)
        .unwrap()
}
