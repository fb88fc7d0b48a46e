// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images by their names: added, found, listed, tagged, removed; whatever happens at once. Without privileges.

mod common;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use common::image::{GZIP, INDEX, Layout, MANIFEST, gzip};
use common::tar::{file, tar};
use common::{chain, listing};
use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::{Layer, Name, Source};
use coracle_oci::layer::{Options, Ownership};
use coracle_oci::store::{Found, Receiving, Removed, Rootfs, Store, StoreError};
use coracle_oci::unpack::Progress;
use rstest::rstest;
use serde_json::{Value, json};

struct Ground {
    directory: tempfile::TempDir,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn keep_none(_: &Digest) -> bool {
    false
}

fn options() -> Options {
    Options {
        ownership: Ownership::Caller,
        ..Options::default()
    }
}

impl Ground {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> Store {
        Store::open(self.directory.path()).unwrap()
    }

    fn source(&self, layout: &Layout) -> Source {
        let place = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        Source::open(layout.write_directory(&place)).unwrap()
    }

    /// Adds an image that holds a file of each of these names, a layer each.
    fn add(&self, text: &str, files: &[&str]) {
        let source = self.source(&layout_of(files));
        self.store().add(&name(text), &source, None, None).unwrap();
    }

    fn unpacked(&self, text: &str) -> Rootfs {
        let store = self.store();
        let Found { stored, source, .. } = store.find(&name(text)).unwrap().unwrap();
        store
            .unpacked(&source, &stored.image.unwrap(), options(), None)
            .unwrap()
    }

    fn remove(&self, text: &str) -> Removed {
        self.remove_but(text, &keep_none).unwrap()
    }

    fn remove_but(&self, text: &str, keep: &dyn Fn(&Digest) -> bool) -> Result<Removed, String> {
        let found = self.store().find(&name(text)).unwrap();
        let Found { stored, .. } = found.ok_or("it is not there")?;
        let removed = self.store().remove(&stored, keep);
        removed.map_err(|error| chain(&error))
    }

    fn names(&self) -> Vec<String> {
        let images = self.store().images().unwrap();
        images
            .into_iter()
            .map(|stored| stored.name.familiar())
            .collect()
    }

    fn count(&self, path: &str) -> usize {
        let entries = fs::read_dir(self.directory.path().join("images").join(path));
        entries.map_or(0, Iterator::count)
    }

    fn blobs(&self) -> usize {
        self.count("blobs/sha256")
    }

    fn trees(&self) -> usize {
        self.count("trees/sha256")
    }

    fn temporaries(&self) -> usize {
        self.count("tmp")
    }
}

fn layout_of(files: &[&str]) -> Layout {
    let items: Vec<_> = files.iter().map(|name| [file(name, name)]).collect();
    let layers: Vec<&[_]> = items.iter().map(|items| items.as_slice()).collect();
    Layout::with_image(&layers)
}

#[test]
fn image_is_added_found_and_unpacked() {
    let ground = Ground::new();

    ground.add("tool:1", &["f"]);

    let rootfs = ground.unpacked("docker.io/library/tool:1");
    assert_eq!(listing(&rootfs.path), ["f file 644 f"]);
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn images_are_listed_with_what_is_known_of_them() {
    let ground = Ground::new();
    ground.add("b:1", &["f"]);
    ground.add("a:2", &["f", "g"]);

    let images = ground.store().images().unwrap();

    let image = images[0].image.as_ref().unwrap();
    let size: u64 = fs::read_dir(ground.directory.path().join("images/blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().metadata().unwrap().len())
        .sum();
    let sizes: u64 = images
        .iter()
        .map(|stored| stored.image.as_ref().unwrap().size())
        .sum();
    assert_eq!(ground.names(), ["a:2", "b:1"]);
    assert_eq!(image.config.platform().to_string(), "linux/amd64");
    assert_eq!(images[0].digest, image.manifest.digest);
    // The two share one layer.
    let shared = image.layers[0].descriptor.size;
    assert_eq!(sizes, size + shared);
}

#[test]
fn store_is_a_layout_that_others_read() {
    let ground = Ground::new();
    ground.add("registry.example:5000/a/tool:1", &["f"]);

    let source = Source::open(ground.store().layout()).unwrap();

    let image = source
        .image(Some("registry.example:5000/a/tool:1"))
        .unwrap();
    assert_eq!(image.layers.len(), 1);
}

#[test]
fn name_that_nobody_has_is_not_found() {
    let ground = Ground::new();
    ground.add("tool:1", &["f"]);
    let store = ground.store();

    assert!(store.find(&name("tool:2")).unwrap().is_none());
    assert!(
        store
            .find(&name("elsewhere.example/tool:1"))
            .unwrap()
            .is_none()
    );
    let error = store.tag(&name("tool:2"), &name("x")).unwrap_err();
    assert_eq!(error.to_string(), "there is no image tool:2");
}

#[test]
fn image_is_found_by_its_digest_whatever_its_tag() {
    let ground = Ground::new();
    ground.add("tool:1", &["f"]);
    let digest = ground.store().images().unwrap()[0].digest.clone();

    let find = |text: String| ground.store().find(&name(&text)).unwrap();

    assert!(find(format!("tool@{digest}")).is_some());
    assert!(find(format!("tool:other@{digest}")).is_some());
    assert!(find(format!("another@{digest}")).is_none());
}

#[test]
fn name_is_taken_from_what_had_it() {
    let ground = Ground::new();
    ground.add("tool:1", &["old"]);
    ground.add("tool:1", &["new"]);

    assert_eq!(ground.names(), ["tool:1"]);
    assert_eq!(
        listing(&ground.unpacked("tool:1").path),
        ["new file 644 new"]
    );
}

#[test]
fn image_with_two_names_stays_until_both_are_gone() {
    let ground = Ground::new();
    ground.add("tool:1", &["f"]);
    drop(ground.unpacked("tool:1"));
    let store = ground.store();

    store.tag(&name("tool:1"), &name("tool:best")).unwrap();
    let first = ground.remove("tool:1");
    let second = ground.remove("tool:best");

    assert_eq!(first, Removed::default());
    assert_eq!((second.blobs, second.trees), (3, 1));
    assert_eq!((ground.blobs(), ground.trees()), (0, 0));
    assert!(second.bytes > 0);
}

#[test]
fn removal_spares_what_other_images_share() {
    let ground = Ground::new();
    ground.add("small", &["f"]);
    ground.add("large", &["f", "g"]);
    drop((ground.unpacked("small"), ground.unpacked("large")));

    let removed = ground.remove("large");

    // Manifest, config and the upper layer.
    assert_eq!((removed.blobs, removed.trees), (3, 1));
    assert_eq!(listing(&ground.unpacked("small").path), ["f file 644 f"]);
}

#[test]
fn tree_in_use_is_kept_and_goes_with_the_next_prune() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    let rootfs = ground.unpacked("tool");
    // As another process has it, to which the descriptor was given.
    let lease = rootfs.lease.try_clone().unwrap();
    let path = rootfs.path.clone();
    drop(rootfs);

    let removed = ground.remove("tool");
    let in_use = path.exists();
    assert!(lease.as_fd().try_clone_to_owned().is_ok());
    drop(lease);
    let pruned = ground.store().prune(&keep_none).unwrap();

    assert_eq!((removed.trees, removed.kept_trees, in_use), (0, 1, true));
    assert_eq!((pruned.trees, pruned.kept_trees), (1, 0));
    assert!(!path.exists());
    assert_eq!(
        ground.count("locks"),
        2,
        "locks other than those of index and blobs"
    );
}

#[test]
fn tree_that_was_given_before_is_leased_again_while_it_is_whole() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    let path = ground.unpacked("tool").path;

    let lease = ground.store().lease(&path).unwrap();
    let removed = ground.remove("tool");
    assert!(lease.is_some());
    assert_eq!(removed.kept_trees, 1);
    drop(lease);
    // As after another boot, of a tree that nobody wrote out.
    fs::write(path.parent().unwrap().join("boot"), "another").unwrap();
    let _ = fs::remove_file(path.parent().unwrap().join("durable"));

    let error = ground.store().lease(&path).unwrap_err();
    assert!(matches!(error, StoreError::NotWhole(_)), "{error}");
    assert!(ground.store().lease(Path::new("/srv")).unwrap().is_none());
}

#[test]
fn tree_that_is_to_be_kept_is_kept() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    let chain_id = ground.unpacked("tool").chain_id;

    let removed = ground.remove_but("tool", &|id| *id == chain_id).unwrap();

    assert_eq!((removed.trees, removed.kept_trees), (0, 1));
    assert_eq!(ground.trees(), 1);
}

#[test]
fn name_that_was_given_to_another_meanwhile_stays() {
    let ground = Ground::new();
    ground.add("tool", &["old"]);
    let store = ground.store();
    let Found { stored, .. } = store.find(&name("tool")).unwrap().unwrap();
    ground.add("tool", &["new"]);

    let error = store.remove(&stored, &keep_none).unwrap_err();

    assert_eq!(
        error.to_string(),
        "image tool:latest was replaced meanwhile"
    );
    let rootfs = ground.unpacked("tool");
    assert_eq!(listing(&rootfs.path), ["new file 644 new"]);
}

#[test]
fn name_that_is_gone_meanwhile_is_said() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    let store = ground.store();
    let Found { stored, .. } = store.find(&name("tool")).unwrap().unwrap();
    ground.remove("tool");

    let error = store.remove(&stored, &keep_none).unwrap_err();

    assert_eq!(error.to_string(), "there is no image tool:latest");
}

#[test]
fn prune_spares_images_with_a_name() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    drop(ground.unpacked("tool"));
    let other = ground.source(&layout_of(&["other"]));
    let image = other.image(None).unwrap();
    drop(
        ground
            .store()
            .unpacked(&other, &image, options(), None)
            .unwrap(),
    );

    let removed = ground.store().prune(&keep_none).unwrap();

    assert_eq!((removed.blobs, removed.trees), (0, 1));
    assert!(ground.unpacked("tool").cached);
}

#[test]
fn damaged_image_is_listed_and_can_be_removed() {
    let ground = Ground::new();
    ground.add("bad", &["bad"]);
    ground.add("good", &["good"]);
    let store = ground.store();
    let image = store
        .find(&name("bad"))
        .unwrap()
        .unwrap()
        .stored
        .image
        .unwrap();
    let config = image.config_blob.digest;
    fs::write(store.layout().join("blobs/sha256").join(config.hex()), "{}").unwrap();

    let images = store.images().unwrap();
    let removed = ground.remove("bad");

    assert_eq!(
        images
            .iter()
            .map(|stored| stored.image.is_ok())
            .collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(removed.blobs, 3);
    assert_eq!(ground.names(), ["good:latest"]);
}

/// A file that no compression makes small.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect()
}

fn flip(store: &Store, digest: &Digest) {
    let path = store.layout().join("blobs/sha256").join(digest.hex());
    let mut content = fs::read(&path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
}

#[test]
fn damaged_layer_comes_anew_once_it_was_found_out() {
    let ground = Ground::new();
    let source = ground.source(&Layout::with_image(&[&[file("f", noise(5 << 20))]]));
    let store = ground.store();
    let added = store.add(&name("tool"), &source, None, None).unwrap();
    let image = added.image.unwrap();
    flip(&store, &image.layers[0].descriptor.digest);
    let own = Source::open(store.layout()).unwrap();

    let error = store.unpacked(&own, &image, options(), None).unwrap_err();
    store.add(&name("tool"), &source, None, None).unwrap();

    assert!(chain(&error).contains("is damaged"), "{}", chain(&error));
    assert!(!ground.unpacked("tool").cached);
}

#[test]
fn damaged_document_comes_anew() {
    let ground = Ground::new();
    let source = ground.source(&layout_of(&["f"]));
    let store = ground.store();
    let added = store.add(&name("tool"), &source, None, None).unwrap();
    let image = added.image.unwrap();
    flip(&store, &image.config_blob.digest);
    flip(&store, &image.manifest.digest);

    store.add(&name("tool"), &source, None, None).unwrap();

    assert!(!ground.unpacked("tool").cached);
}

#[rstest]
#[case::other_content(b"{}".as_slice())]
#[case::cut(b"")]
fn damaged_manifest_is_in_no_other_images_way(#[case] content: &[u8]) {
    let ground = Ground::new();
    ground.add("bad", &["bad"]);
    ground.add("good", &["good"]);
    let store = ground.store();
    let bad = store.images().unwrap().remove(0);
    let path = store.layout().join("blobs/sha256").join(bad.digest.hex());
    fs::write(path, content).unwrap();

    let removed = ground.remove("good");
    let images = store.images().unwrap();

    // Those of the damaged image as well, but for its manifest: nothing says any more that it needs them.
    assert_eq!(removed.blobs, 5);
    assert!(images[0].image.is_err());
    assert_eq!(ground.remove("bad").blobs, 1);
}

#[test]
fn blob_named_as_a_layer_elsewhere_keeps_its_own_references() {
    let ground = Ground::new();
    ground.add("victim", &["f"]);
    let victim = ground.store().images().unwrap()[0].digest.clone();
    let size = fs::metadata(
        ground
            .store()
            .layout()
            .join("blobs/sha256")
            .join(victim.hex()),
    )
    .unwrap()
    .len();
    // An image that calls the other's manifest a layer of its own.
    let mut layout = Layout::new();
    let layer = json!({"mediaType": GZIP, "digest": victim.to_string(), "size": size});
    let manifest = layout.manifest("amd64", &[layer], &[victim.to_string()]);
    layout.tag("latest", manifest);
    let source = ground.source(&layout);
    ground
        .store()
        .add(&name("attacker"), &source, None, None)
        .unwrap();

    let removed = ground.store().prune(&keep_none).unwrap();

    assert_eq!(removed.blobs, 0);
    assert_eq!(listing(&ground.unpacked("victim").path), ["f file 644 f"]);
}

fn blob_of(content: &[u8]) -> (Digest, u64) {
    (Digest::of(Algorithm::Sha256, content), content.len() as u64)
}

fn receive(receiving: &Receiving<'_>, content: &[u8]) -> Result<(Digest, u64), String> {
    let (digest, size) = blob_of(content);
    let mut blob = receiving
        .blob(&digest, size)
        .map_err(|error| chain(&error))?;
    blob.write_all(content).map_err(|error| error.to_string())?;
    blob.commit().map_err(|error| chain(&error))?;
    Ok((digest, size))
}

/// Documents and layers of an image, as a registry gives them: the last is the manifest.
fn contents(layout: &Layout) -> (Vec<Vec<u8>>, Digest) {
    let index: Value = serde_json::from_slice(&layout.files["index.json"]).unwrap();
    let digest = index["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let blobs = layout
        .files
        .iter()
        .filter(|(name, _)| name.starts_with("blobs/"));
    (blobs.map(|(_, content)| content.clone()).collect(), digest)
}

#[test]
fn received_image_is_there_once_it_is_committed() {
    let ground = Ground::new();
    let (blobs, manifest) = contents(&layout_of(&["f"]));
    let store = ground.store();

    let receiving = store.receive().unwrap();
    let mut size = 0;
    for blob in &blobs {
        let (digest, length) = receive(&receiving, blob).unwrap();
        if digest == manifest {
            size = length;
        }
        assert!(receiving.has(&digest, length));
    }
    let before = ground.names();
    receiving
        .commit(&name("tool:1"), MANIFEST, &manifest, size)
        .unwrap();

    assert!(before.is_empty());
    assert_eq!(listing(&ground.unpacked("tool:1").path), ["f file 644 f"]);
}

#[test]
fn index_of_several_platforms_needs_only_what_is_for_this_one() {
    let ground = Ground::new();
    let mut layout = Layout::new();
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let mut ours = layout.image("amd64", &[&[file("f", "x")]]);
    ours["platform"] = platform("amd64");
    let mut other = Layout::new().image("arm64", &[&[file("g", "")]]);
    other["platform"] = platform("arm64");
    let index = layout.json(
        INDEX,
        &json!({"schemaVersion": 2, "manifests": [other, ours]}),
    );
    layout.add(index);
    let (blobs, digest) = contents(&layout);
    let store = ground.store();
    let receiving = store.receive().unwrap();
    let sizes: Vec<_> = blobs
        .iter()
        .map(|blob| receive(&receiving, blob).unwrap())
        .collect();
    let size = sizes.iter().find(|(found, _)| *found == digest).unwrap().1;

    let stored = receiving
        .commit(&name("tool"), INDEX, &digest, size)
        .unwrap();

    assert_eq!(stored.digest, digest);
    assert_ne!(stored.image.unwrap().manifest.digest, digest);
    assert_eq!(store.prune(&keep_none).unwrap().blobs, 0);
    assert_eq!(listing(&ground.unpacked("tool").path), ["f file 644 x"]);
}

#[test]
fn incomplete_image_gets_no_name() {
    let ground = Ground::new();
    let layout = layout_of(&["f"]);
    let layer = layout
        .files
        .iter()
        .find(|(_, content)| content.starts_with(&[0x1f, 0x8b]))
        .unwrap();
    let (blobs, manifest) = contents(&layout);
    let store = ground.store();
    let receiving = store.receive().unwrap();
    let mut size = 0;
    for blob in blobs.iter().filter(|blob| *blob != layer.1) {
        let (digest, length) = receive(&receiving, blob).unwrap();
        if digest == manifest {
            size = length;
        }
    }

    let error = receiving
        .commit(&name("tool"), MANIFEST, &manifest, size)
        .unwrap_err();

    let digest = Digest::of(Algorithm::Sha256, layer.1);
    assert_eq!(
        error.to_string(),
        format!("image tool:latest is incomplete: layer {digest} is missing")
    );
    assert!(ground.names().is_empty());
    assert_eq!(store.prune(&keep_none).unwrap().blobs, 2);
}

#[test]
fn name_with_another_digest_is_refused() {
    let ground = Ground::new();
    let (_, manifest) = contents(&layout_of(&["f"]));
    let other = Digest::of(Algorithm::Sha256, b"other");
    let store = ground.store();

    let error = store
        .receive()
        .unwrap()
        .commit(&name(&format!("tool@{other}")), MANIFEST, &manifest, 1)
        .unwrap_err();

    assert_eq!(
        error.to_string(),
        format!("image tool@{other} has the digest {manifest}")
    );
}

#[rstest]
#[case::short(
    b"conten",
    "a blob cannot be added to the image store: blob DIGEST has 6 bytes where its descriptor says 7"
)]
#[case::changed(
    b"contenT",
    "a blob cannot be added to the image store: blob DIGEST is damaged"
)]
fn blob_that_is_not_what_it_should_be_is_refused(#[case] content: &[u8], #[case] message: &str) {
    let ground = Ground::new();
    let store = ground.store();
    let receiving = store.receive().unwrap();
    let (digest, size) = blob_of(b"content");
    let mut blob = receiving.blob(&digest, size).unwrap();

    blob.write_all(content).unwrap();
    let error = chain(&blob.commit().unwrap_err());

    assert!(
        error.starts_with(&message.replace("DIGEST", &digest.to_string())),
        "{error}"
    );
    assert!(!receiving.has(&digest, size));
    assert_eq!((ground.temporaries(), ground.blobs()), (0, 0));
}

#[test]
fn blob_that_goes_on_is_stopped() {
    let ground = Ground::new();
    let store = ground.store();
    let (digest, size) = blob_of(b"content");
    let mut blob = store.receive().unwrap().blob(&digest, size).unwrap();
    blob.write_all(b"content").unwrap();

    let error = blob.write_all(b"!").unwrap_err();

    assert!(
        error
            .to_string()
            .contains("has 8 bytes where its descriptor says 7"),
        "{error}"
    );
}

#[test]
fn cut_transfer_goes_on_or_starts_anew() {
    let ground = Ground::new();
    let store = ground.store();
    let receiving = store.receive().unwrap();
    let (digest, size) = blob_of(b"content");
    let mut blob = receiving.blob(&digest, size).unwrap();

    blob.write_all(b"xxx").unwrap();
    blob.restart().unwrap();
    blob.write_all(b"con").unwrap();
    assert_eq!(blob.written(), 3);
    blob.write_all(b"tent").unwrap();
    blob.commit().unwrap();

    assert!(receiving.has(&digest, size));
}

#[test]
fn nothing_is_removed_while_an_image_is_received() {
    let ground = Ground::new();
    let store = ground.store();
    let receiving = store.receive().unwrap();
    let (digest, size) = receive(&receiving, b"content").unwrap();

    let removed = ground.store().prune(&keep_none).unwrap();
    let is_there = receiving.has(&digest, size);
    drop(receiving);

    assert!(removed.kept_blobs && is_there);
    assert_eq!(store.prune(&keep_none).unwrap().blobs, 1);
}

/// A blob as a process leaves it that dies while it writes.
fn leave_behind(ground: &Ground) -> PathBuf {
    drop(ground.store());
    let path = ground.directory.path().join("images/tmp/blob-1-1-abc");
    fs::write(&path, "half").unwrap();
    path
}

#[test]
fn blob_left_by_a_dead_process_is_removed() {
    let ground = Ground::new();
    let path = leave_behind(&ground);

    Store::sweep(ground.directory.path());

    assert!(!path.exists());
}

#[test]
fn blob_in_the_making_is_left_alone() {
    let ground = Ground::new();
    let store = ground.store();
    let (digest, size) = blob_of(b"content");
    let mut blob = store.receive().unwrap().blob(&digest, size).unwrap();
    blob.write_all(b"con").unwrap();

    drop(ground.store());

    blob.write_all(b"tent").unwrap();
    blob.commit().unwrap();
}

#[test]
fn names_given_at_once_are_all_there() {
    const ADDING: usize = 8;
    let ground = Ground::new();
    let source = ground.source(&layout_of(&["f"]));
    let barrier = Barrier::new(ADDING);

    thread::scope(|scope| {
        for number in 0..ADDING {
            let (ground, source, barrier) = (&ground, &source, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let name = name(&format!("tool:{number}"));
                ground.store().add(&name, source, None, None).unwrap();
            });
        }
    });

    assert_eq!(ground.names().len(), ADDING);
    assert_eq!((ground.blobs(), ground.temporaries()), (3, 0));
}

#[test]
fn images_come_and_go_at_once_and_are_never_half_there() {
    const ROUNDS: usize = 30;
    let ground = Ground::new();
    let source = ground.source(&layout_of(&["f"]));
    let tool = name("tool");

    thread::scope(|scope| {
        let (ground, source, tool) = (&ground, &source, &tool);
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                ground.store().add(tool, source, None, None).unwrap();
            }
        });
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                let _ = ground.remove_but("tool", &keep_none);
            }
        });
        for _ in 0..ROUNDS {
            let store = ground.store();
            let Some(found) = store.find(tool).unwrap() else {
                continue;
            };
            let image = found.stored.image.unwrap();
            let rootfs = store
                .unpacked(&found.source, &image, options(), None)
                .unwrap();
            assert_eq!(listing(&rootfs.path), ["f file 644 f"]);
        }
    });

    ground.store().add(&tool, &source, None, None).unwrap();
    assert_eq!(listing(&ground.unpacked("tool").path), ["f file 644 f"]);
}

#[test]
fn other_tools_entries_of_the_index_stay() {
    let ground = Ground::new();
    ground.add("tool:1", &["f"]);
    let path = ground.store().layout().join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["annotations"] = json!({"a": "b"});
    let mut entry = index["manifests"][0].clone();
    entry["annotations"] =
        json!({"org.opencontainers.image.ref.name": "No Name Of Ours", "x": "y"});
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .push(entry.clone());
    fs::write(&path, index.to_string()).unwrap();

    let removed = ground.remove("tool:1");

    let after: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(removed.blobs, 0);
    assert_eq!(
        (&after["annotations"], &after["manifests"]),
        (&json!({"a": "b"}), &json!([entry]))
    );
}

#[rstest]
#[case::no_json(b"{")]
#[case::no_object(b"[]")]
fn broken_index_is_named(#[case] content: &[u8]) {
    let ground = Ground::new();
    let path = ground.store().layout().join("index.json");
    fs::write(&path, content).unwrap();

    let error = ground.store().images().unwrap_err();

    assert!(chain(&error).starts_with("image"), "{}", chain(&error));
    assert!(chain(&error).contains("is not valid"), "{}", chain(&error));
}

#[derive(Default)]
struct Counted {
    total: AtomicU64,
    done: AtomicU64,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Progress for Counted {
    fn begun(&self, bytes: u64, layers: usize) {
        assert_eq!(layers, 2);
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advanced(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn layer_begun(&self, index: usize, _: &Layer) {
        assert_eq!(index, self.begun.fetch_add(1, Ordering::Relaxed));
    }

    fn layer_done(&self, index: usize) {
        assert_eq!(index, self.ended.fetch_add(1, Ordering::Relaxed));
    }
}

impl Counted {
    fn assert_whole(&self) {
        let [total, done] = [&self.total, &self.done].map(|value| value.load(Ordering::Relaxed));
        assert!(total > 0);
        assert_eq!(total, done);
        assert_eq!(self.ended.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn progress_comes_to_the_total() {
    let ground = Ground::new();
    let source = ground.source(&layout_of(&["f", "g"]));
    let store = ground.store();
    let (adding, again, unpacking) = (Counted::default(), Counted::default(), Counted::default());

    store
        .add(&name("tool"), &source, None, Some(&adding))
        .unwrap();
    store
        .add(&name("tool"), &source, None, Some(&again))
        .unwrap();
    let image = source.image(None).unwrap();
    store
        .unpacked(&source, &image, options(), Some(&unpacking))
        .unwrap();

    for counted in [adding, again, unpacking] {
        counted.assert_whole();
    }
}

#[test]
fn archive_of_docker_can_be_added() {
    let ground = Ground::new();
    let layer = tar(&[file("f", "x")]);
    let diff_id = Digest::of(Algorithm::Sha256, &layer);
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let manifest = json!([{"Config": "c.json", "RepoTags": ["tool:1"], "Layers": ["l.tar.gz"]}]);
    let archive = tar(&[
        file("c.json", config.to_string()),
        file("manifest.json", manifest.to_string()),
        file("l.tar.gz", gzip(&layer)),
    ]);
    let path = ground.directory.path().join("saved.tar");
    fs::write(&path, archive).unwrap();
    let source = Source::open(&path).unwrap();

    ground
        .store()
        .add(&name("loaded"), &source, Some("tool:1"), None)
        .unwrap();

    assert_eq!(listing(&ground.unpacked("loaded").path), ["f file 644 x"]);
}

#[test]
fn store_of_another_boot_is_unpacked_anew_unless_it_reached_the_disk() {
    let ground = Ground::new();
    ground.add("lost", &["lost"]);
    ground.add("written", &["written"]);
    let (lost, written) = (ground.unpacked("lost"), ground.unpacked("written"));
    written.write_out().unwrap();
    let boot = |rootfs: &Rootfs| rootfs.path.parent().unwrap().join("boot");
    for rootfs in [&lost, &written] {
        fs::write(boot(rootfs), "another").unwrap();
        fs::write(rootfs.path.join("sign"), "").unwrap();
    }
    drop((lost, written));

    let (lost, written) = (ground.unpacked("lost"), ground.unpacked("written"));

    assert!(!lost.cached && written.cached);
    assert!(!lost.path.join("sign").exists() && written.path.join("sign").exists());
}

#[test]
fn sweep_writes_trees_out() {
    let ground = Ground::new();
    ground.add("tool", &["f"]);
    let mark = ground
        .unpacked("tool")
        .path
        .parent()
        .unwrap()
        .join("durable");
    let before = mark.exists();

    Store::sweep(ground.directory.path());

    assert_eq!((before, mark.exists()), (false, true));
}

#[test]
fn sweep_of_nothing_makes_nothing() {
    let ground = Ground::new();

    Store::sweep(ground.directory.path().join("nowhere"));

    assert!(!Path::new(&ground.directory.path().join("nowhere")).exists());
}
