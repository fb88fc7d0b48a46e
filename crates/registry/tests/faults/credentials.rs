// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who is shown what.

use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_registry::Options;
use coracle_registry::credentials::Credentials;
use rstest::rstest;

use crate::common::server::{Reply, Request, Server};
use crate::common::{password, pull, whole};
use crate::ground::{layers_of, serve, serve_but};

/// `user:hunter2`.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

fn basic_registry() -> (Server, Options) {
    serve_but(|request| {
        (request.header("authorization") != Some(BASIC))
            .then(|| Reply::challenge("Basic realm=\"r\""))
    })
}

#[test]
fn password_is_shown_to_who_asks_for_it() {
    let (server, mut options) = basic_registry();
    options
        .credentials
        .insert(server.host(), password("hunter2"));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    // Once asked for, it is shown without being asked.
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn password_of_a_file_is_shown() {
    let (server, mut options) = basic_registry();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let json =
        serde_json::json!({"auths": {server.host(): {"auth": BASIC.strip_prefix("Basic ")}}});
    std::fs::write(&path, json.to_string()).unwrap();
    options.credential_files = vec![path];

    let (_directory, result) = pull(options, &server.image());

    result.unwrap();
}

#[test]
fn wrong_password_is_said_but_not_shown() {
    let (server, mut options) = basic_registry();
    options
        .credentials
        .insert(server.host(), password("hunter3"));

    let (_directory, result) = pull(options, &server.image());

    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {} refuses access to test, or does not have it (status 401, UNAUTHORIZED: authentication required); it was asked with \
             the given credentials",
            server.host()
        )
    );
    assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn missing_password_is_said_with_where_it_goes() {
    let (server, mut options) = basic_registry();
    options.credential_files = vec!["/nonexistent/config.json".into()];

    let (_directory, result) = pull(options, &server.image());

    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("it was asked without credentials"),
        "{error}"
    );
    assert!(
        error.contains("go into /nonexistent/config.json"),
        "{error}"
    );
}

#[test]
fn forbidden_image_is_said() {
    let (server, options) = serve(|_| Reply::fault(403, "DENIED", "not yours"));

    let (_directory, result) = pull(options, &server.image());

    let error = result.unwrap_err().to_string();
    assert!(error.contains("(status 403, DENIED: not yours)"), "{error}");
}

#[rstest]
#[case::no_challenge("", "it does not say which")]
#[case::unknown_scheme("Negotiate", "by `negotiate`")]
#[case::no_realm("Bearer service=\"x\"", "its token server is not asked")]
#[case::plain_realm(
    "Bearer realm=\"http://192.0.2.1/token\"",
    "to plain HTTP on another host"
)]
#[case::other_realm("Bearer realm=\"file:///etc/passwd\"", "its token server is not asked")]
fn other_challenges_are_refused(#[case] header: &'static str, #[case] message: &str) {
    let (server, mut options) = serve(move |_| Reply::challenge(header));
    options
        .credentials
        .insert(server.host(), password("hunter2"));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains("authentication that is not supported"),
        "{error}"
    );
    assert!(error.contains(message), "{error}");
}

/// A registry whose token server, at the same address, replies with `token`.
fn token_registry(token: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Server, Options) {
    serve_but(move |request| {
        let host = request.header("host").unwrap();
        let bearer = format!(
            "Bearer realm=\"http://{host}/token?a=b\",service=\"s s\",scope=\"repository:test:pull\""
        );
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", _) => Some(token(request)),
            (_, Some("Bearer t1" | "Bearer t2")) => None,
            _ => Some(Reply::challenge(&bearer)),
        }
    })
}

#[rstest]
#[case::token(r#"{"token": "t1", "expires_in": 60}"#)]
#[case::access_token(r#"{"access_token": "t1"}"#)]
#[case::null(r#"{"token": null, "access_token": "t1"}"#)]
fn anonymous_token_is_asked_for(#[case] answer: &'static str) {
    let (server, options) = token_registry(move |_| Reply::new(200, answer));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    let asked = server.requests_of("/token");
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].query,
        "a=b&scope=repository%3Atest%3Apull&service=s%20s"
    );
    assert_eq!(asked[0].header("authorization"), None);
}

#[test]
fn password_is_changed_for_a_token() {
    let (server, mut options) = token_registry(|request| match request.header("authorization") {
        Some(BASIC) => Reply::new(200, r#"{"token": "t1"}"#),
        _ => Reply::fault(401, "UNAUTHORIZED", "no"),
    });
    options
        .credentials
        .insert(server.host(), password("hunter2"));

    let (_directory, result) = pull(options, &server.image());

    result.unwrap();
    let shown = server
        .requests()
        .iter()
        .filter(|request| request.header("authorization") == Some(BASIC))
        .count();
    assert_eq!(shown, 1);
}

#[test]
fn identity_token_is_changed_for_a_token() {
    let (server, mut options) = token_registry(|_| Reply::new(200, r#"{"access_token": "t1"}"#));
    options
        .credentials
        .insert(server.host(), Credentials::IdentityToken("a&b".into()));

    let (_directory, result) = pull(options, &server.image());

    result.unwrap();
    let asked = server.requests_of("/token");
    assert_eq!(asked[0].method, "POST");
    assert_eq!(
        asked[0].body,
        "scope=repository%3Atest%3Apull&service=s%20s&grant_type=refresh_token&client_id=coracle&refresh_token=a%26b"
    );
}

#[test]
fn token_that_is_over_is_renewed() {
    let uses = AtomicUsize::new(0);
    let (server, options) = serve_but(move |request| {
        let host = request.header("host").unwrap();
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", _) => {
                let token = format!("t{}", request.earlier);
                Some(Reply::new(200, format!("{{\"token\": \"{token}\"}}")))
            }
            // Good for one request.
            (_, Some("Bearer t0")) if uses.fetch_add(1, Ordering::SeqCst) == 0 => None,
            (_, Some("Bearer t1")) => None,
            _ => Some(Reply::challenge(&format!(
                "Bearer realm=\"http://{host}/token\""
            ))),
        }
    });

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    assert_eq!(server.requests_of("/token").len(), 2);
}

#[rstest]
#[case::refused(Some(Reply::fault as fn(u16, &str, &str) -> Reply), "", "refuses access to test")]
#[case::no_json(None, "hunter2", "gives no token: its answer is not JSON")]
#[case::no_text(
    None,
    r#"{"token": ["hunter2"]}"#,
    "gives no token: its answer has a value of an unexpected kind"
)]
#[case::none(None, r#"{"token": ""}"#, "gives no token: its answer holds none")]
#[case::line_break(None, r#"{"token": "hunter2\r\nX: y"}"#, "does not fit a header")]
fn token_server_without_a_token_is_said(
    #[case] fault: Option<fn(u16, &str, &str) -> Reply>,
    #[case] answer: &'static str,
    #[case] message: &str,
) {
    let (server, options) = token_registry(move |_| {
        fault.map_or_else(|| Reply::new(200, answer), |fault| fault(401, "", ""))
    });

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains(message), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn endless_token_is_refused() {
    let (server, options) = token_registry(|_| Reply::new(200, " ".repeat(100_000)));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("a token from 127.0.0.1:"), "{error}");
    assert!(
        error.contains("larger than the limit of 65536 bytes"),
        "{error}"
    );
}

#[test]
fn token_server_that_fails_for_a_while_is_asked_again() {
    let (server, options) = token_registry(|request| match request.earlier {
        0 => Reply::fault(503, "", ""),
        _ => Reply::new(200, r#"{"token": "t1"}"#),
    });

    let (_directory, result) = pull(options, &server.image());

    result.unwrap();
}

#[test]
fn identity_token_does_not_follow_a_redirect() {
    let (other, _) = serve(|_| Reply::new(200, r#"{"token": "t1"}"#));
    let location = format!("http://{}/token", other.host());
    let (server, mut options) = token_registry(move |_| Reply::redirect(&location));
    options
        .credentials
        .insert(server.host(), Credentials::IdentityToken("hunter2".into()));

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("in a way that is not followed"), "{error}");
    assert!(other.requests().is_empty());
}
