// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry says instead of an answer.

use std::time::{Duration, Instant};

use rstest::rstest;

use crate::common::image::digest;
use crate::common::server::Reply;
use crate::common::{pull, whole};
use crate::ground::{failure, is_layer, layer, layers_of, serve, serve_but};

#[test]
fn unknown_image_is_said_with_the_registry_and_its_words() {
    let error = failure(|_| Reply::fault(404, "MANIFEST_UNKNOWN", "manifest\u{1b}[31m unknown"));

    assert!(error.contains("does not have image 127.0.0.1:"), "{error}");
    assert!(
        error.ends_with("/test:latest (MANIFEST_UNKNOWN: manifest\\u{1b}[31m unknown)"),
        "{error}"
    );
}

#[test]
fn missing_blob_is_named() {
    let (server, options) = serve_but(|request| {
        is_layer(request).then(|| Reply::fault(404, "BLOB_UNKNOWN", "blob unknown"))
    });

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains(&format!("does not have blob {}", digest(&layer()))),
        "{error}"
    );
}

#[rstest]
#[case::too_many_requests(429)]
#[case::internal(500)]
#[case::bad_gateway(502)]
#[case::overloaded(503)]
#[case::gateway_timeout(504)]
#[case::request_timeout(408)]
fn what_passes_is_tried_again(#[case] status: u16) {
    let (server, options) =
        serve_but(move |request| (request.earlier == 0).then(|| Reply::fault(status, "", "")));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    assert_eq!(server.requests_of("/manifests/latest").len(), 2);
}

#[test]
fn what_does_not_pass_is_given_up() {
    let (server, options) = serve(|_| Reply::fault(503, "UNAVAILABLE", "later"));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.starts_with("gave up after 3 tries in 0."), "{error}");
    assert!(
        error.contains("now (status 503, UNAVAILABLE: later)"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn retry_after_is_heeded() {
    let (server, options) = serve_but(|request| {
        (request.earlier == 0 && request.path.contains("manifests"))
            .then(|| Reply::fault(429, "TOOMANYREQUESTS", "").header("Retry-After", "1"))
    });
    let started = Instant::now();

    let (_directory, result) = pull(options, &server.image());

    result.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn retry_after_beyond_all_patience_is_said() {
    let error = failure(|_| Reply::fault(429, "TOOMANYREQUESTS", "").header("Retry-After", "3600"));

    assert!(
        error.ends_with("now (status 429, TOOMANYREQUESTS); it asks to wait 3600.0 s"),
        "{error}"
    );
}

#[rstest]
#[case(400)]
#[case(418)]
#[case(501)]
#[case(304)]
fn other_status_is_said_at_once(#[case] status: u16) {
    let (server, options) = serve(move |_| Reply::new(status, ""));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains(&format!("answers with status {status}")),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
}
