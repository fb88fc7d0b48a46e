// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections that are cut, stall, or do not speak HTTP.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use coracle_registry::{Options, RegistryError, Retry, Timeouts};
use rstest::rstest;

use crate::common::image::{Repository, digest};
use crate::common::server::{Reply, Request};
use crate::common::{pull, quick, whole};
use crate::ground::{failure, is_layer, layer, layers_of, serve, serve_but};

#[test]
fn cut_blob_goes_on_where_it_was_cut() {
    let (server, options) = serve_but(|request| {
        (is_layer(request) && request.earlier == 0).then(|| Reply::new(200, layer()).cut(60_000))
    });

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
    let ranges: Vec<Option<usize>> = server
        .requests()
        .iter()
        .filter(|request| is_layer(request))
        .map(Request::range_start)
        .collect();
    assert_eq!(ranges, [None, Some(60_000)]);
}

#[test]
fn cut_blob_is_begun_anew_where_the_registry_knows_no_ranges() {
    let (server, options) = serve_but(|request| {
        is_layer(request).then(|| match request.earlier {
            0 => Reply::new(200, layer()).cut(60_000),
            _ => Reply::new(200, layer()),
        })
    });

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
}

#[test]
fn registry_without_ranges_that_always_cuts_is_given_up() {
    const MIB: usize = 1 << 20;
    let large = vec![7; 12 * MIB];
    let repository = Repository::with_image(std::slice::from_ref(&large));
    let named = digest(&large).to_string();
    let (server, options) = serve(move |request| match request.path.ends_with(&named) {
        // A megabyte more each time, and all that was there before.
        true => Reply::new(200, &large).cut(large.len().min((request.earlier + 1) * (MIB + 1000))),
        false => repository.reply(request),
    });

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.starts_with("gave up after 3 tries"), "{error}");
}

#[test]
fn cut_manifest_is_read_again() {
    let repository = Repository::with_image(&[layer()]);
    let (server, options) = serve(move |request| {
        let reply = repository.reply(request);
        match request.earlier {
            0 => reply.cut(10),
            _ => reply,
        }
    });

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
}

#[test]
fn blob_that_is_always_cut_is_given_up_with_how_far_it_came() {
    let (server, options) =
        serve_but(|request| is_layer(request).then(|| Reply::new(200, layer()).cut(60_000)));

    let (directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.starts_with("gave up after 3 tries"), "{error}");
    assert!(error.contains("was cut while blob sha256:"), "{error}");
    assert!(error.ends_with("after 60000 of 100000 bytes"), "{error}");
    let layer = directory
        .path()
        .join("blobs/sha256")
        .join(digest(&layer()).hex());
    assert!(!layer.exists());
}

#[rstest]
#[case::later("bytes 70000-99999/100000")]
#[case::none("")]
#[case::nonsense("bytes x-y/z")]
fn other_part_than_asked_for_is_refused(#[case] range: &'static str) {
    let (server, options) = serve_but(move |request| {
        is_layer(request).then(|| match request.earlier {
            0 => Reply::new(200, layer()).cut(60_000),
            _ => Reply::new(206, &layer()[70_000..]).header("Content-Range", range),
        })
    });

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains("from byte 60000, and gives another part"),
        "{error}"
    );
}

#[test]
fn blob_that_stalls_goes_on_or_is_given_up() {
    let (server, options) =
        serve_but(|request| is_layer(request).then(|| Reply::new(200, layer()).stall(10)));
    let started = Instant::now();

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.starts_with("gave up after 3 tries"), "{error}");
    assert!(error.contains("stalls: blob sha256:"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn single_bytes_do_not_keep_a_pull_alive() {
    let (server, options) = serve_but(|request| {
        is_layer(request).then(|| Reply::new(200, layer()).trickle(Duration::from_millis(50)))
    });
    let started = Instant::now();

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("stalls: blob sha256:"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn manifest_that_trickles_ends() {
    let options = |options: Options| Options {
        timeouts: Timeouts {
            answer: Duration::from_millis(500),
            ..options.timeouts
        },
        retry: Retry {
            tries: 1,
            ..options.retry
        },
        ..options
    };
    let (server, defaults) =
        serve(|_| Reply::new(200, " ".repeat(1000)).trickle(Duration::from_millis(50)));

    let (_directory, result) = pull(options(defaults), &server.image());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("stalls: image "), "{error}");
}

#[test]
fn server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let options = Options {
        insecure: vec![host.clone()],
        ..quick()
    };

    let (_directory, result) = pull(options, &format!("{host}/test"));

    let error = whole(&result.unwrap_err());
    assert!(error.contains("stalls: image "), "{error}");
}

#[test]
fn refused_connection_is_said_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);

    let (_directory, result) = pull(quick(), &format!("{host}/test"));

    let error = whole(&result.unwrap_err());
    assert!(
        error.starts_with(&format!("{host} cannot be reached: ")),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn host_without_an_address_is_said() {
    let (_directory, result) = pull(quick(), "registry.invalid/test");

    let error = result.unwrap_err();
    assert!(matches!(error, RegistryError::Resolve { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("the address of registry.invalid cannot be found: "),
        "{error}"
    );
}

#[rstest]
#[case::no_http("hello\r\n\r\n")]
#[case::no_status("HTTP/1.1 \r\n\r\n")]
#[case::other_protocol("\x15\x03\x01\x00\x02\x02\x46")]
fn what_is_no_http_is_refused(#[case] bytes: &'static str) {
    let error = failure(move |_| Reply::raw(bytes));

    assert!(error.contains("does not speak HTTP"), "{error}");
}

#[test]
fn empty_answer_is_a_cut() {
    let error = failure(|_| Reply::raw(""));

    assert!(error.contains("was cut while image"), "{error}");
}
