// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that cannot be used, or that this host does not want: one sentence, a status, and nothing left behind.

use std::fs;
use std::io::{self, Read};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::Test;
use crate::host::{Done, Host, image, layer};
use crate::pulling::{serve, try_to_run};
use crate::registry::image::{INDEX, MANIFEST, Repository, digest};
use crate::registry::server::Server;

pub const TESTS: &[Test] = &[
    (
        "image_that_cannot_be_used_is_refused",
        image_that_cannot_be_used_is_refused,
    ),
    (
        "indexes_that_hold_each_other_are_refused",
        indexes_that_hold_each_other_are_refused,
    ),
    (
        "image_of_more_entries_than_the_file_says_is_refused",
        image_of_more_entries_than_the_file_says_is_refused,
    ),
    (
        "image_of_more_bytes_than_the_file_says_is_refused",
        image_of_more_bytes_than_the_file_says_is_refused,
    ),
];

pub const OF_RUNS: &[Test] = &[(
    "image_that_cannot_be_used_is_not_run",
    image_that_cannot_be_used_is_not_run,
)];

/// Images, and what is said of each.
fn unusable() -> Vec<(Repository, &'static str)> {
    let mut of_another_platform = Repository::default();
    let arm = of_another_platform.add_image("arm64", &[]);
    let index = of_another_platform.add_index(&[("arm64/v8", MANIFEST, &arm)]);
    of_another_platform.tag("latest", INDEX, &index);

    let mut endless = image("one");
    let mut inner = endless.content["manifests/latest"].1.clone();
    let mut media_type = MANIFEST;
    for _ in 0..20 {
        inner = endless.add_index(&[("", media_type, &inner)]);
        media_type = INDEX;
    }
    endless.tag("latest", INDEX, &inner);

    let of_another_form = "application/vnd.oci.image.layer.v1.tar+lz4";
    vec![
        (
            changed(|manifest| manifest["layers"][0]["mediaType"] = of_another_form.into()),
            "has the media type `application/vnd.oci.image.layer.v1.tar+lz4`, which is not supported",
        ),
        (
            changed(|manifest| manifest["layers"][0]["digest"] = "blake3:00".into()),
            "digest `blake3:00` is by an algorithm that is not supported: `blake3`; sha256 and sha512 are",
        ),
        (
            of_another_platform,
            "is not for linux/amd64; it is for linux/arm64",
        ),
        (endless, "16"),
    ]
}

/// An image with a manifest that is not as it was.
fn changed(change: impl FnOnce(&mut Value)) -> Repository {
    with_changed_manifest(image("one"), change)
}

fn with_changed_manifest(
    mut repository: Repository,
    change: impl FnOnce(&mut Value),
) -> Repository {
    let manifest = &repository.content["manifests/latest"].1;
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    change(&mut manifest);
    let manifest = repository.add_document(MANIFEST, manifest.to_string().into_bytes());
    repository.tag("latest", MANIFEST, &manifest);
    repository
}

/// Fails unless the last of what was told is the only sentence of an error, and nothing has come of the image.
#[track_caller]
fn assert_refused(host: &Host, stderr: &str, says: &str) {
    let is_told = |line: &&str| {
        let starts = ["pulling ", "pulled ", "manifest "];
        starts.iter().any(|start| line.starts_with(start))
    };
    let lines: Vec<_> = stderr.lines().skip_while(is_told).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert!(
        lines[0].starts_with("coracle: ") && lines[0].contains(says),
        "{says:?} is not in {stderr}"
    );
    assert!(host.names().is_empty());
    for below in ["tmp", "trees"] {
        assert!(host.files(below).is_empty(), "{below}");
    }
}

fn image_that_cannot_be_used_is_refused() {
    for (repository, says) in unusable() {
        let host = Host::new();
        let layout = host.layout("layout", &repository);
        let server = serve(repository, |_| None);

        let pulled = host.run(&["pull", &server.image()]).failed();
        let loaded = host.run(&["load", &layout, "one"]).failed();

        assert_refused(&host, &pulled, says);
        assert_refused(&host, &loaded, says);
    }
}

fn image_that_cannot_be_used_is_not_run() {
    for (repository, says) in unusable() {
        let host = Host::new();
        let layout = host.layout("layout", &repository);

        let error = try_to_run(&host, &[], &layout);

        assert_refused(&host, &error, says);
        let containers = fs::read_dir(host.path("root/containers"));
        assert_eq!(containers.map_or(0, Iterator::count), 0);
    }
}

/// No two documents can hold each other's digests: a registry or a directory can only say so.
fn indexes_that_hold_each_other_are_refused() {
    let [one, two] = ["one", "two"].map(|name| digest(name.as_bytes()));
    let index = |other: &coracle_oci::digest::Digest| {
        json!({"manifests": [{"mediaType": INDEX, "digest": other, "size": 159}]}).to_string()
    };
    let (first, second) = (index(&two), index(&one));
    let mut repository = Repository::default();
    for (name, document) in [
        ("latest".to_owned(), &second),
        (one.to_string(), &first),
        (two.to_string(), &second),
    ] {
        repository.tag(&name, INDEX, document.as_bytes());
    }
    let server = serve(repository, |_| None);
    let host = Host::new();
    let layout = host.layout("layout", &image("one"));
    let blobs = host.path("layout/blobs/sha256");
    fs::write(blobs.join(one.hex()), &first).unwrap();
    fs::write(blobs.join(two.hex()), &second).unwrap();
    fs::write(host.path("layout/index.json"), &second).unwrap();

    let pulled = host.run(&["pull", &server.image()]).failed();
    let loaded = host.run(&["load", &layout, "one"]).failed();

    // It may have been damaged on its way.
    assert!(
        pulled.contains(" is not what was asked for; trying again at once\n"),
        "{pulled}"
    );
    assert_refused(&host, &pulled, one.hex());
    assert_refused(&host, &loaded, one.hex());
}

/// Pulls from `server` with these settings.
fn pull_with(host: &Host, server: &Server, settings: &str) -> Done {
    let config = host.path("config.toml");
    fs::write(&config, settings).unwrap();
    let mut command = host.command(&["pull", &server.image()]);
    Done::of(command.env("CORACLE_CONFIG", config).output().unwrap())
}

/// Fails unless `stderr` ends with why the setting `limit` does not let `server`'s image be unpacked, and nothing has
/// come of it.
#[track_caller]
fn assert_limited(host: &Host, server: &Server, stderr: &str, limit: &str, says: &str) {
    let expected = format!(
        "coracle: cannot unpack the image {}:latest (the configuration limits it: {limit}): layer sha256:",
        server.image()
    );
    let sentence = stderr.lines().last().unwrap();
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(sentence.starts_with(&expected), "{stderr}");
    assert!(sentence.ends_with(says), "{stderr}");
    let left = [host.files("tmp"), host.files("trees")].concat();
    assert!(left.is_empty(), "{left:?}");
}

fn image_of_more_entries_than_the_file_says_is_refused() {
    let files = ["one", "two", "three"].map(|name| (name, name.as_bytes()));
    let server = serve(Repository::with_image(&[layer(&files)]), |_| None);
    let host = Host::new();

    let refused = pull_with(&host, &server, "[image]\nentries = 2\n").failed();

    let says = " is refused: the image has more than 2 entries";
    assert_limited(&host, &server, &refused, "image.entries is 2", says);
    pull_with(&host, &server, "[image]\nentries = 3\n").ok();
}

/// A few megabytes of gzip for a file of a byte less than a GiB: with the archive's own blocks it is more.
fn image_of_more_bytes_than_the_file_says_is_refused() {
    const GIB: u64 = 1 << 30;
    const PART: u64 = GIB / 64;
    let compressed = |bytes: &mut dyn Read| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        io::copy(bytes, &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(GIB - 1);
    header.set_cksum();
    let part = compressed(&mut io::repeat(0).take(PART));
    let mut layer = compressed(&mut &header.as_bytes()[..]);
    for _ in 0..GIB / PART {
        layer.extend_from_slice(&part);
    }
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let repository = with_changed_manifest(Repository::with_image(&[layer]), |manifest| {
        manifest["layers"][0]["mediaType"] = media_type.into();
    });
    let server = serve(repository, |_| None);
    let host = Host::new();

    let refused = pull_with(&host, &server, "[image]\nlimit = 1\n").failed();

    let says = " is refused: the image unpacks to more than 1073741824 bytes";
    assert_limited(&host, &server, &refused, "image.limit is 1.0 GiB", says);
}
