// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where blobs go: side by side, into a store, and with whom is told.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_oci::image::{Descriptor, Name};
use coracle_registry::{Client, Layout, Progress, Sink, State};
use rstest::rstest;

use crate::common::image::{INDEX, MANIFEST, Repository, digest};
use crate::common::server::Reply;
use crate::common::{pull, whole};
use crate::ground::{layer, layers_of, pull_into_store, serve, serve_but};

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
fn layers_are_pulled_side_by_side_up_to_a_bound() {
    let layers: Vec<Vec<u8>> = (0..6_u8).map(|number| vec![number; 1000]).collect();
    let digests: Vec<_> = layers
        .iter()
        .map(|layer| digest(layer).to_string())
        .collect();
    let repository = Repository::with_image(&layers);
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let (server, mut options) = serve(move |request| {
        // The configuration comes alone, before them.
        if digests.iter().any(|digest| request.path.ends_with(digest)) {
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // All that may be side by side, and then time for one that may not.
            let begun = Instant::now();
            while seen.load(Ordering::SeqCst) < 3 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(150));
            now.fetch_sub(1, Ordering::SeqCst);
        }
        repository.reply(request)
    });
    // One that is tried anew would be counted twice.
    options.timeouts.stall = Duration::from_secs(60);

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
    let name = match by_digest {
        true => format!("{}@{}", server.image(), digest(&outer)),
        false => server.image(),
    };

    let stored = pull_into_store(options, &name);

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
