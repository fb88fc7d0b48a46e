// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Content that is not what was asked for, or more than is taken.

use std::sync::Mutex;
use std::time::Duration;

use coracle_registry::{Client, Layout, Limits, Options, Progress, RegistryError};
use rstest::rstest;

use crate::common::image::{MANIFEST, Repository, digest};
use crate::common::server::Reply;
use crate::common::{pull, whole};
use crate::ground::{failure, is_layer, layer, serve, serve_but};

#[test]
fn damaged_blob_is_pulled_once_more_and_refused_with_both_digests() {
    let (server, options) = serve_but(|request| {
        is_layer(request)
            .then(|| Reply::new(200, layer().iter().rev().copied().collect::<Vec<_>>()))
    });

    let (directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    let found: Vec<u8> = layer().iter().rev().copied().collect();
    assert!(error.contains(&digest(&layer()).to_string()), "{error}");
    assert!(error.contains(&digest(&found).to_string()), "{error}");
    assert_eq!(
        server
            .requests()
            .iter()
            .filter(|request| is_layer(request))
            .count(),
        2
    );
    let layer = directory
        .path()
        .join("blobs/sha256")
        .join(digest(&layer()).hex());
    assert!(!layer.exists());
}

#[test]
fn blob_that_was_damaged_by_chance_is_pulled() {
    struct Told(Mutex<Vec<String>>);
    impl Progress for Told {
        fn retrying(&self, error: &RegistryError, _: Duration) {
            self.0.lock().unwrap().push(whole(error));
        }
    }
    let (server, options) = serve_but(|request| {
        (is_layer(request) && request.earlier == 0).then(|| Reply::new(200, vec![0; 100_000]))
    });
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::open(directory.path()).unwrap();
    let told = Told(Mutex::default());

    Client::new(options)
        .pull(&server.image().parse().unwrap(), &layout, &told)
        .unwrap();

    let told = told.0.into_inner().unwrap();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("is damaged"), "{told:?}");
}

#[test]
fn damaged_manifest_is_refused_with_both_digests() {
    let repository = Repository::with_image(&[layer()]);
    let wanted = digest(&repository.content["manifests/latest"].1);
    let (server, options) = serve(|_| Reply::new(200, "{}").header("Content-Type", MANIFEST));

    let (_directory, result) = pull(options, &format!("{}@{wanted}", server.image()));

    let error = whole(&result.unwrap_err());
    assert!(error.contains(&wanted.to_string()), "{error}");
    assert!(error.contains(&digest(b"{}").to_string()), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn manifest_is_what_the_registry_announces() {
    let announced = digest(b"other").to_string();
    let repository = Repository::with_image(&[]);

    let error = failure(move |request| {
        repository
            .reply(request)
            .header("Docker-Content-Digest", &announced)
    });

    assert!(error.contains("is not what was asked for"), "{error}");
}

#[test]
fn blob_of_another_length_is_refused_before_it_is_read() {
    let (server, options) =
        serve_but(|request| is_layer(request).then(|| Reply::new(200, vec![0; 100_001])));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains("has 100001 bytes where its descriptor says 100000"),
        "{error}"
    );
}

#[rstest]
#[case::manifest(Limits { document: 100, ..Limits::default() }, "is larger than the limit of 100 bytes")]
#[case::layers(Limits { layers: 0, ..Limits::default() }, "it has 1 layers; at most 0")]
#[case::image(Limits { image: 99_999, ..Limits::default() }, "is larger than the limit of 99999 bytes")]
fn what_is_too_large_is_refused(#[case] limits: Limits, #[case] message: &str) {
    let (server, options) = serve_but(|_| None);

    let (_directory, result) = pull(Options { limits, ..options }, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains(message), "{error}");
}

#[rstest]
#[case::long(1, 100_000)]
#[case::many(5_000, 10)]
fn headers_without_end_are_refused(#[case] count: usize, #[case] length: usize) {
    let error = failure(move |_| {
        (0..count).fold(Reply::new(200, ""), |reply, number| {
            reply.header(&format!("x-{number}"), &"x".repeat(length))
        })
    });

    assert!(
        error.contains("the header of an answer") || error.contains("does not speak HTTP"),
        "{error}"
    );
}
