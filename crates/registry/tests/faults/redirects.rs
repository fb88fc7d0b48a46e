// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whom a redirect may lead to, and what is told there.

use rstest::rstest;

use crate::common::server::Reply;
use crate::common::{password, pull, whole};
use crate::ground::{failure, is_layer, layer, layers_of, serve, serve_but};

#[test]
fn redirect_to_another_host_is_not_told_who_asks() {
    let (storage, _) = serve(|_| Reply::new(200, layer()));
    let location = format!("http://{}/storage?signature=x", storage.host());
    let (server, mut options) =
        serve_but(
            move |request| match (request.header("authorization"), is_layer(request)) {
                (None, _) => Some(Reply::challenge("Basic realm=\"r\"")),
                (Some(_), true) => Some(Reply::redirect(&location)),
                (Some(_), false) => None,
            },
        );
    options
        .credentials
        .insert(server.host(), password("hunter2"));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    assert_eq!(storage.requests()[0].query, "signature=x");
    assert_eq!(storage.requests()[0].header("authorization"), None);
}

#[test]
fn redirect_within_the_registry_is_told_who_asks() {
    let (server, mut options) = serve_but(|request| {
        let moved = "/v2/test/blobs/moved";
        match request.header("authorization") {
            None => Some(Reply::challenge("Basic realm=\"r\"")),
            Some(_) if is_layer(request) => Some(Reply::redirect(moved)),
            Some(_) => (request.path == moved).then(|| Reply::new(200, layer())),
        }
    });
    options
        .credentials
        .insert(server.host(), password("hunter2"));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
}

#[test]
fn challenge_of_another_host_is_not_answered() {
    let (storage, _) = serve(|_| Reply::challenge("Basic realm=\"r\""));
    let location = format!("http://{}/storage", storage.host());
    let (server, mut options) =
        serve_but(move |request| is_layer(request).then(|| Reply::redirect(&location)));
    options
        .credentials
        .insert(server.host(), password("hunter2"));
    options
        .credentials
        .insert(storage.host(), password("hunter3"));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("answers with status 401"), "{error}");
    assert_eq!(storage.requests().len(), 1);
    assert_eq!(storage.requests()[0].header("authorization"), None);
}

#[rstest]
#[case::endless("/v2/test/manifests/latest", "more than 5 times")]
#[case::plain_elsewhere("http://192.0.2.1/", "to plain HTTP on another host")]
#[case::other_scheme("ftp://127.0.0.1/", "neither of HTTPS nor of HTTP")]
#[case::with_user("http://user:hunter2@127.0.0.1/", "no valid host")]
#[case::nonsense("::", "cannot be read")]
fn other_redirects_are_refused(#[case] location: &'static str, #[case] message: &str) {
    let error = failure(move |_| Reply::redirect(location));

    assert!(error.contains(message), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn redirect_without_a_location_is_a_status() {
    let error = failure(|_| Reply::new(307, ""));

    assert!(error.contains("answers with status 307"), "{error}");
}
