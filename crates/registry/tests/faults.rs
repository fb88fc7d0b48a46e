// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pulls from registries that fail, lie and stall.

mod common;

use std::io::Read;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::image::{INDEX, MANIFEST, Repository, digest};
use common::server::{Reply, Request, Server};
use common::{pull, quick, whole};
use coracle_oci::image::{Descriptor, Name, Source};
use coracle_oci::store::{Store, StoredImage};
use coracle_registry::credentials::Credentials;
use coracle_registry::{
    Client, Layout, Limits, Options, Progress, RegistryError, Retry, Sink, State, Timeouts,
};
use rstest::rstest;

fn layer() -> Vec<u8> {
    (0..100_000_u32)
        .map(|number| (number % 251) as u8)
        .collect()
}

/// A server without TLS, and options for it.
fn serve(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Server, Options) {
    let server = Server::start(reply);
    let options = Options {
        insecure: vec![server.host()],
        ..quick()
    };
    (server, options)
}

/// Serves an image, but for what `fault` replies to.
fn serve_but(
    fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Options) {
    let repository = Repository::with_image(&[layer()]);
    serve(move |request| fault(request).unwrap_or_else(|| repository.reply(request)))
}

fn is_layer(request: &Request) -> bool {
    request.path.ends_with(&digest(&layer()).to_string())
}

fn layers_of(directory: &tempfile::TempDir) -> usize {
    Source::open(directory.path())
        .unwrap()
        .image(Some("pulled"))
        .unwrap()
        .layers
        .len()
}

fn failure(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> String {
    let (server, options) = serve(reply);
    let (_directory, result) = pull(options, &server.image());
    whole(&result.unwrap_err())
}

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
fn blobs_that_are_there_are_not_pulled_again() {
    let (server, options) = serve_but(|_| None);
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::open(directory.path()).unwrap();
    let (client, name) = (Client::new(options), server.image().parse().unwrap());
    client.pull(&name, &layout, &()).unwrap();

    client.pull(&name, &layout, &()).unwrap();

    // The config tells what the image is for, so it is read each time.
    assert_eq!(server.requests_of("/blobs/").len(), 3);
    assert_eq!(server.requests_of("/manifests/").len(), 2);
}

#[test]
fn same_layer_twice_is_pulled_once() {
    let repository = Repository::with_image(&[layer(), layer()]);
    let (server, options) = serve(move |request| repository.reply(request));

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 2);
    assert_eq!(server.requests_of("/blobs/").len(), 2);
}

#[test]
fn registry_on_this_machine_may_be_without_tls() {
    let (server, _) = serve_but(|_| None);

    let (directory, result) = pull(quick(), &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
}

#[test]
fn image_by_digest_is_pulled() {
    let repository = Repository::with_image(&[layer()]);
    let wanted = digest(&repository.content["manifests/latest"].1);
    let (server, options) = serve(move |request| repository.reply(request));

    let (_directory, result) = pull(options, &format!("{}:other@{wanted}", server.image()));

    assert_eq!(result.unwrap().image.digest, wanted);
}

// Indexes.

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

/// Pulls `test:latest` into a store, and gives it its name there.
fn pull_into_store(
    options: Options,
    server: &Server,
) -> Result<StoredImage, Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    let receiving = store.receive()?;
    let name: Name = server.image().parse()?;
    let image = Client::new(options).pull(&name, &receiving, &())?.image;
    Ok(receiving.commit(&name, &image.media_type, &image.digest, image.size)?)
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

    let stored = pull_into_store(options, &server).unwrap();

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

// Statuses.

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

// Connections.

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
    let large = vec![7; 16 * MIB];
    let repository = Repository::with_image(std::slice::from_ref(&large));
    let named = digest(&large).to_string();
    let (server, options) = serve(move |request| match request.path.ends_with(&named) {
        // A megabyte more each time, and all that was there before.
        true => {
            Reply::new(200, &large).cut(large.len().min((request.earlier + 1) * (MIB + 100_000)))
        }
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

// Content.

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

// Limits.

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

// Redirects.

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

// Authentication.

fn password(password: &str) -> Credentials {
    Credentials::Password {
        user: "user".into(),
        password: password.into(),
    }
}

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

#[rstest]
#[case::password("Basic realm=\"r\"", password("hunter2"))]
#[case::token("Bearer realm=\"REALM\"", Credentials::RegistryToken("hunter2".into()))]
#[case::identity("Bearer realm=\"REALM\"", Credentials::IdentityToken("hunter2".into()))]
fn who_is_found_without_tls_is_shown_nothing(
    #[case] challenge: &'static str,
    #[case] credentials: Credentials,
) {
    // Anybody on this machine can serve a port that the registry does not.
    let server = Server::start(move |request| {
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::challenge(&challenge.replace("REALM", &realm))
    });
    let mut options = quick();
    options.credentials.insert(server.host(), credentials);

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains("without credentials, since it has no TLS, and is not listed as insecure"),
        "{error}"
    );
    for request in server.requests() {
        assert_eq!(request.header("authorization"), None);
        assert!(!request.body.contains("hunter2"), "{request:?}");
    }
}

#[test]
fn registry_with_an_authority_of_its_own_is_asked_with_tls_alone() {
    let (server, _) = serve_but(|_| None);
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join(server.host());
    std::fs::create_dir(&own).unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    std::fs::write(own.join("ca.crt"), pem).unwrap();
    let options = Options {
        certificate_directories: vec![directory.path().to_owned()],
        ..quick()
    };

    let (_directory, result) = pull(options, &server.image());

    assert!(result.is_err());
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn registry_on_this_machine_that_stalls_is_not_asked_without_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();

    let (_directory, result) = pull(quick(), &format!("{host}/test"));

    let error = whole(&result.unwrap_err());
    assert!(error.contains("its API"), "{error}");
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

// Side by side.

#[test]
fn layers_are_pulled_side_by_side_up_to_a_bound() {
    let layers: Vec<Vec<u8>> = (0..6_u8).map(|number| vec![number; 1000]).collect();
    let repository = Repository::with_image(&layers);
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let (server, options) = serve(move |request| {
        if request.path.contains("/blobs/") {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(150));
            now.fetch_sub(1, Ordering::SeqCst);
        }
        repository.reply(request)
    });

    let (directory, result) = pull(options, &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 6);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[test]
fn first_failure_ends_the_waits_of_the_others_and_is_reported() {
    let layers: Vec<Vec<u8>> = (0..3_u8).map(|number| vec![number; 1000]).collect();
    let missing = digest(&layers[1]).to_string();
    let others = [
        digest(&layers[0]).to_string(),
        digest(&layers[2]).to_string(),
    ];
    let repository = Repository::with_image(&layers);
    let named = missing.clone();
    let (server, mut options) = serve(move |request| {
        if request.path.ends_with(&named) {
            std::thread::sleep(Duration::from_millis(300));
            return Reply::fault(404, "BLOB_UNKNOWN", "");
        }
        match others.iter().any(|other| request.path.ends_with(other)) {
            true => Reply::fault(503, "", "").header("Retry-After", "60"),
            false => repository.reply(request),
        }
    });
    options.retry.total = Duration::from_secs(120);
    let started = Instant::now();

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains(&format!("does not have blob {missing}")),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[rstest]
#[case::by_tag(false)]
#[case::by_digest(true)]
fn image_is_pulled_into_the_store(#[case] by_digest: bool) {
    let mut repository = Repository::default();
    let (ours, other) = (
        repository.add_image("amd64", &[layer(), b"second".to_vec()]),
        repository.add_image("arm64", &[b"other".to_vec()]),
    );
    let index = repository.add_index(&[("arm64", MANIFEST, &other), ("amd64", MANIFEST, &ours)]);
    let outer = repository.add_index(&[("", INDEX, &index)]);
    repository.tag("latest", INDEX, &outer);
    let (server, options) = serve(move |request| repository.reply(request));
    let name: Name = match by_digest {
        true => format!("{}@{}", server.image(), digest(&outer)),
        false => server.image(),
    }
    .parse()
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    let receiving = store.receive().unwrap();

    let pulled = Client::new(options).pull(&name, &receiving, &()).unwrap();

    let image = pulled.image;
    let stored = receiving
        .commit(&name, &image.media_type, &image.digest, image.size)
        .unwrap();
    assert_eq!(stored.digest, digest(&outer));
    assert_eq!(stored.image.unwrap().manifest.digest, digest(&ours));
}

/// A store that is full.
struct Full;

impl Sink for Full {
    fn contains(&self, _: &Descriptor) -> std::io::Result<bool> {
        Ok(false)
    }

    fn store(&self, _: &Descriptor, _: &mut dyn Read) -> std::io::Result<()> {
        Err(std::io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn full_store_is_said() {
    let (server, options) = serve_but(|_| None);
    let name: Name = server.image().parse().unwrap();

    let error = Client::new(options).pull(&name, &Full, &()).unwrap_err();

    let error = whole(&error);
    assert!(error.starts_with("blob sha256:"), "{error}");
    assert!(
        error.ends_with("cannot be stored: no storage space"),
        "{error}"
    );
}

/// A store that looks at nothing.
struct Careless;

impl Sink for Careless {
    fn contains(&self, _: &Descriptor) -> std::io::Result<bool> {
        Ok(false)
    }

    fn store(&self, _: &Descriptor, _: &mut dyn Read) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn store_that_does_not_read_has_no_blob() {
    let (server, options) = serve_but(|_| None);
    let name: Name = server.image().parse().unwrap();

    let error = Client::new(options)
        .pull(&name, &Careless, &())
        .unwrap_err();

    assert!(
        whole(&error).ends_with("it was not read to its end"),
        "{error}"
    );
}

#[test]
fn progress_tells_of_each_blob() {
    #[derive(Default)]
    struct Told(Mutex<(usize, Vec<(u64, State)>)>);
    impl Progress for Told {
        fn begin(&self, blobs: &[Descriptor]) {
            self.0.lock().unwrap().0 = blobs.len();
        }

        fn blob(&self, blob: &Descriptor, state: State) {
            self.0.lock().unwrap().1.push((blob.size, state));
        }
    }
    let (server, options) = serve_but(|_| None);
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::open(directory.path()).unwrap();
    let told = Told::default();

    Client::new(options)
        .pull(&server.image().parse().unwrap(), &layout, &told)
        .unwrap();

    let (blobs, mut states) = told.0.into_inner().unwrap();
    assert_eq!(blobs, 2);
    assert_eq!(
        states[0].1,
        State::Finished,
        "the config is there at the start"
    );
    assert_eq!(states.pop(), Some((100_000, State::Finished)));
    assert_eq!(states.pop(), Some((100_000, State::Received(100_000))));
}
