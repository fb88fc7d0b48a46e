// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a name to an image: manifests, indexes, and what is neither.

use rstest::rstest;

use crate::common::image::{INDEX, MANIFEST, Repository, digest};
use crate::common::pull;
use crate::ground::{failure, layer, layers_of, pull_into_store, serve, serve_but};

#[test]
fn image_is_pulled() {
    let (server, options) = serve_but(|_| None);

    let (directory, result) = pull(options, &server.image());

    let pulled = result.unwrap();
    assert_eq!(pulled.image, pulled.manifest);
    assert_eq!(layers_of(&directory), 1);
    let accept = server.requests()[0].header("accept").unwrap().to_owned();
    assert!(
        accept.contains(INDEX) && accept.contains(MANIFEST),
        "{accept}"
    );
}

#[test]
fn image_by_digest_is_pulled() {
    let repository = Repository::with_image(&[layer()]);
    let wanted = digest(&repository.content["manifests/latest"].1);
    let (server, options) = serve(move |request| repository.reply(request));

    let (_directory, result) = pull(options, &format!("{}:other@{wanted}", server.image()));

    assert_eq!(result.unwrap().image.digest, wanted);
}

#[rstest]
#[case::first(&["amd64", "arm64"])]
#[case::last(&["arm64", "riscv64", "amd64"])]
#[case::not_said(&["arm64", ""])]
fn index_leads_to_this_platform(#[case] architectures: &[&str]) {
    let mut repository = Repository::default();
    let images: Vec<(&str, Vec<u8>)> = architectures
        .iter()
        .map(|&name| {
            let own = if name.is_empty() { "amd64" } else { name };
            (name, repository.add_image(own, &[own.into()]))
        })
        .collect();
    let entries: Vec<(&str, &str, &[u8])> = images
        .iter()
        .map(|(name, image)| (*name, MANIFEST, image.as_slice()))
        .collect();
    let inner = repository.add_index(&entries);
    let outer = repository.add_index(&[("", INDEX, &inner)]);
    repository.tag("latest", INDEX, &outer);
    let (server, options) = serve(move |request| repository.reply(request));

    let (directory, result) = pull(options, &server.image());

    assert_eq!(result.unwrap().image.digest, digest(&outer));
    assert_eq!(layers_of(&directory), 1);
    let blob = digest(b"amd64").hex().to_owned();
    assert!(directory.path().join("blobs/sha256").join(blob).exists());
}

/// What an index has for a platform.
enum Entry {
    /// An image whose config says this architecture.
    Image(&'static str),
    /// An index of one image, without a word of its platform.
    Index(&'static str),
    /// What is no image.
    Artifact,
    /// What is neither an index nor a manifest.
    Other,
}

#[rstest]
#[case::unsaid_before_a_later_cpu(&[("", Entry::Image("amd64")), ("amd64/v2", Entry::Image("amd64"))], 1)]
#[case::unsaid_after_a_later_cpu(&[("amd64/v3", Entry::Image("amd64")), ("", Entry::Image("amd64"))], 0)]
#[case::plainest(&[("amd64/v3", Entry::Image("amd64")), ("amd64/v1", Entry::Image("amd64")), ("amd64/v2", Entry::Image("amd64"))], 1)]
#[case::unsaid_index(&[("", Entry::Index("amd64")), ("amd64/v2", Entry::Image("amd64"))], 1)]
#[case::unsaid_index_of_another(&[("", Entry::Index("arm64")), ("", Entry::Image("amd64"))], 1)]
#[case::said_and_untrue(&[("amd64", Entry::Image("arm64")), ("", Entry::Image("amd64"))], 1)]
#[case::artifact_before(&[("", Entry::Artifact), ("", Entry::Image("amd64"))], 1)]
#[case::artifact_for_this_platform(&[("amd64", Entry::Artifact), ("amd64", Entry::Image("amd64"))], 1)]
#[case::other_before(&[("", Entry::Other), ("", Entry::Image("amd64"))], 1)]
fn what_is_pulled_is_what_the_store_takes(
    #[case] entries: &[(&str, Entry)],
    #[case] expected: usize,
) {
    let mut repository = Repository::default();
    let entries: Vec<(&str, &str, Vec<u8>)> = entries
        .iter()
        .enumerate()
        .map(|(number, (platform, entry))| {
            let own = [vec![number as u8]];
            let (media_type, document) = match entry {
                Entry::Image(architecture) => (MANIFEST, repository.add_image(architecture, &own)),
                Entry::Index(architecture) => {
                    let image = repository.add_image(architecture, &own);
                    (INDEX, repository.add_index(&[("", MANIFEST, &image)]))
                }
                Entry::Artifact => (MANIFEST, repository.add_artifact()),
                Entry::Other => (
                    "text/plain",
                    repository.add_document("text/plain", b"text".to_vec()),
                ),
            };
            (*platform, media_type, document)
        })
        .collect();
    let entries: Vec<(&str, &str, &[u8])> = entries
        .iter()
        .map(|(platform, media_type, document)| (*platform, *media_type, document.as_slice()))
        .collect();
    let index = repository.add_index(&entries);
    repository.tag("latest", INDEX, &index);
    let (server, options) = serve(move |request| repository.reply(request));

    let stored = pull_into_store(options, &server.image());

    assert_eq!(
        stored.image.unwrap().manifest.digest,
        digest(entries[expected].2)
    );
}

#[test]
fn index_without_an_image_is_refused() {
    let mut repository = Repository::default();
    let artifact = repository.add_artifact();
    let index = repository.add_index(&[("", MANIFEST, &artifact)]);
    repository.tag("latest", INDEX, &index);

    let error = failure(move |request| repository.reply(request));

    assert!(error.contains("it is not a container image"), "{error}");
}

#[test]
fn indexes_that_are_large_together_are_refused() {
    let mut repository = Repository::with_image(&[]);
    let mut inner = repository.content["manifests/latest"].1.clone();
    let mut media_type = MANIFEST;
    for _ in 0..6 {
        inner = repository.add_index(&[("", media_type, &inner)]);
        inner.resize(3 << 20, b' ');
        repository.add_document(INDEX, inner.clone());
        media_type = INDEX;
    }
    repository.tag("latest", INDEX, &inner);

    let error = failure(move |request| repository.reply(request));

    assert!(
        error.contains("is larger than the limit of 16777216 bytes"),
        "{error}"
    );
}

#[test]
fn index_without_this_platform_names_those_it_has() {
    let mut repository = Repository::default();
    let arm = repository.add_image("arm64", &[]);
    let unsaid = repository.add_image("s390x", &[]);
    let index = repository.add_index(&[("arm64", MANIFEST, &arm), ("", MANIFEST, &unsaid)]);
    repository.tag("latest", INDEX, &index);

    let error = failure(move |request| repository.reply(request));

    assert!(
        error.ends_with("/test:latest is not for linux/amd64; it is for linux/arm64, linux/s390x"),
        "{error}"
    );
}

#[test]
fn image_of_another_platform_is_refused() {
    let mut repository = Repository::default();
    let image = repository.add_image("arm64", &[layer()]);
    repository.tag("latest", MANIFEST, &image);

    let error = failure(move |request| repository.reply(request));

    assert!(error.ends_with("it is for linux/arm64"), "{error}");
}

#[test]
fn indexes_in_indexes_end() {
    let mut repository = Repository::with_image(&[]);
    let mut inner = repository.content["manifests/latest"].1.clone();
    let mut media_type = MANIFEST;
    for _ in 0..20 {
        inner = repository.add_index(&[("", media_type, &inner)]);
        media_type = INDEX;
    }
    repository.tag("latest", INDEX, &inner);

    let error = failure(move |request| repository.reply(request));

    assert!(
        error.contains("is larger than the limit of 16 documents"),
        "{error}"
    );
}

#[rstest]
#[case::schema_1(
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    r#"{"schemaVersion": 1}"#,
    "schema 1"
)]
#[case::html("text/html", "<html>", "media type `text/html`")]
#[case::no_image(MANIFEST, &format!(r#"{{"config": {{"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "{}", "size": 0}}, "layers": []}}"#, digest(b"")), "not a container image")]
fn what_is_no_image_is_refused(
    #[case] media_type: &str,
    #[case] document: &str,
    #[case] message: &str,
) {
    let mut repository = Repository::default();
    repository.tag("latest", media_type, document.as_bytes());

    let error = failure(move |request| repository.reply(request));

    assert!(error.contains(message), "{error}");
}
