// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in the store, how it comes there without a registry, and how it goes.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::Test;
use crate::host::{Host, image};
use crate::registry::image::digest;

pub const TESTS: &[Test] = &[
    ("store_is_empty_at_first", store_is_empty_at_first),
    ("loaded_image_is_listed", loaded_image_is_listed),
    ("image_is_listed_as_json", image_is_listed_as_json),
    (
        "layout_without_a_name_wants_one",
        layout_without_a_name_wants_one,
    ),
    (
        "name_that_is_only_mentioned_is_not_taken",
        name_that_is_only_mentioned_is_not_taken,
    ),
    ("image_has_a_further_name", image_has_a_further_name),
    (
        "image_that_is_missing_is_said",
        image_that_is_missing_is_said,
    ),
    (
        "damaged_image_is_listed_and_removed",
        damaged_image_is_listed_and_removed,
    ),
    ("removed_image_leaves_nothing", removed_image_leaves_nothing),
    (
        "image_of_a_stopped_container_stays",
        image_of_a_stopped_container_stays,
    ),
    (
        "image_of_a_running_container_stays",
        image_of_a_running_container_stays,
    ),
    (
        "name_goes_where_another_stays",
        name_goes_where_another_stays,
    ),
    (
        "other_images_are_removed_all_the_same",
        other_images_are_removed_all_the_same,
    ),
];

/// A host with the image `one:1` in its store.
fn with_one() -> Host {
    let host = Host::new();
    let layout = host.layout("layout", &image("one"));
    assert_eq!(host.run(&["load", &layout, "one:1"]).ok(), "one:1\n");
    host
}

fn store_is_empty_at_first() {
    let host = Host::new();

    assert_eq!(
        host.run(&["images"]).ok(),
        "NAME   DIGEST   PLATFORM   CREATED   SIZE\n"
    );
    assert_eq!(host.run(&["images", "--json"]).ok(), "[]\n");
    assert_eq!(host.run(&["images", "-q"]).ok(), "");
}

fn loaded_image_is_listed() {
    let host = with_one();

    let manifest = digest(&image("one").content["manifests/latest"].1);
    let listed = host.run(&["images"]).ok();
    let cells: Vec<_> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        cells[..4],
        ["one:1", &manifest.hex()[..12], "linux/amd64", "-"]
    );
    assert!(cells[4..].contains(&"KiB"), "{listed}");
}

fn image_is_listed_as_json() {
    let host = with_one();

    let listed: Value = serde_json::from_str(&host.run(&["images", "--json"]).ok()).unwrap();

    let manifest = digest(&image("one").content["manifests/latest"].1);
    assert_eq!(listed[0]["name"], "docker.io/library/one:1");
    assert_eq!(listed[0]["digest"], manifest.to_string());
    assert_eq!(listed[0]["layers"], 1);
}

fn layout_without_a_name_wants_one() {
    let host = Host::new();
    let layout = host.layout("layout", &image("one"));

    let error = host.run(&["load", &layout]).failed();

    assert!(
        error.contains(&format!("coracle load {layout} NAME")),
        "{error}"
    );
}

fn name_that_is_only_mentioned_is_not_taken() {
    let host = Host::new();
    let layout = host.layout("layout", &image("one"));
    let path = host.path("layout/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["manifests"][0]["annotations"] = json!({
        "org.opencontainers.image.ref.name": "1",
        "io.containerd.image.name": "example.org/one:1",
        "org.opencontainers.image.base.name": "docker.io/library/debian:12",
    });
    fs::write(&path, index.to_string()).unwrap();

    assert_eq!(host.run(&["load", &layout]).ok(), "example.org/one:1\n");

    assert_eq!(host.names(), ["example.org/one:1"]);
}

fn image_has_a_further_name() {
    let host = with_one();

    host.run(&["tag", "one:1", "localhost:5000/other:2"]).ok();

    assert_eq!(host.names(), ["one:1", "localhost:5000/other:2"]);
}

fn image_that_is_missing_is_said() {
    let host = Host::new();

    let error = host.run(&["rmi", "nothing:1"]).failed();

    assert_eq!(error, "coracle: there is no image nothing:1\n");
}

fn damaged_image_is_listed_and_removed() {
    let host = with_one();
    let manifest = digest(&image("one").content["manifests/latest"].1);
    fs::write(
        host.path("root/images/blobs/sha256").join(manifest.hex()),
        "{}",
    )
    .unwrap();

    let listed = host.run(&["images"]).ok();
    let cells: Vec<_> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    let json: Value = serde_json::from_str(&host.run(&["images", "--json"]).ok()).unwrap();
    host.run(&["rmi", "one:1"]).ok();

    assert_eq!(cells, ["one:1", &manifest.hex()[..12], "damaged", "-", "-"]);
    assert!(json[0]["damaged"].is_string(), "{json}");
    assert!(host.names().is_empty());
}

fn removed_image_leaves_nothing() {
    let host = with_one();

    assert_eq!(host.run(&["rmi", "one:1"]).ok(), "one:1\n");

    assert!(host.names().is_empty());
    assert_eq!(host.files("blobs"), [] as [PathBuf; 0]);
}

/// Makes a container out of the image `one`, as a run of it leaves it behind; its directory.
fn container(host: &Host) -> PathBuf {
    let repository = image("one");
    let layer = repository
        .content
        .iter()
        .find(|(key, (_, content))| key.starts_with("blobs/") && !content.starts_with(b"{"))
        .map(|(_, (_, content))| digest(content))
        .unwrap();
    let tree = host
        .path("root/images/trees/sha256")
        .join(layer.hex())
        .join("rootfs");
    fs::create_dir_all(&tree).unwrap();
    let record = json!({
        "id": "0123456789ab",
        "name": "web",
        "image": "one:1",
        "tree": tree,
        "created": "2026-01-01T00:00:00Z",
        "status": {"is": "running", "since": "2026-01-01T00:00:00Z", "runner": 1},
        "remove": false,
        "stop_signal": 15,
    });
    let own = host.path("root/containers/0123456789ab");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("record.json"), record.to_string()).unwrap();
    own
}

fn image_of_a_stopped_container_stays() {
    let host = with_one();
    container(&host);

    let error = host.run(&["rmi", "one:1"]).failed();
    assert_eq!(
        error,
        "coracle: image one:1 is in use: container web was made from it (remove that first: coracle rm web; or use --force)\n"
    );
    assert_eq!(host.names(), ["one:1"]);

    host.run(&["rmi", "--force", "one:1"]).ok();
    assert!(host.names().is_empty());
    let trees = fs::read_dir(host.path("root/images/trees/sha256")).unwrap();
    assert_eq!(trees.count(), 1, "the container's files need it");
}

fn image_of_a_running_container_stays() {
    let host = with_one();
    let lock = File::open(container(&host)).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();

    let error = host.run(&["rmi", "--force", "one:1"]).failed();

    assert_eq!(
        error,
        "coracle: image one:1 is in use: container web is running\n"
    );
    assert_eq!(host.names(), ["one:1"]);
}

fn name_goes_where_another_stays() {
    let host = with_one();
    host.run(&["tag", "one:1", "one:2"]).ok();
    container(&host);

    host.run(&["rmi", "one:1"]).ok();

    assert_eq!(host.names(), ["one:2"]);
    assert_eq!(host.files("blobs").len(), 3);
}

fn other_images_are_removed_all_the_same() {
    let host = with_one();
    let layout = host.layout("second", &image("two"));
    host.run(&["load", &layout, "two"]).ok();

    let done = host.run(&["rmi", "one:1", "nothing", "two"]);

    assert_eq!(done.stdout, "one:1\ntwo\n");
    assert_eq!(done.stderr, "coracle: there is no image nothing:latest\n");
    assert_eq!(done.status, 125);
    assert!(host.names().is_empty());
}
