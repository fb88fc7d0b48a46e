// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Archives of `docker save`, of the older and of the newer kind. Without privileges.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::image::{Layout, gzip, zstd};
use common::tar::{Item, dir, file, hard, symlink, tar};
use common::{chain, listing};
use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::Source;
use coracle_oci::layer::{Options, Ownership};
use coracle_oci::unpack::unpack;
use rstest::rstest;
use serde_json::{Value, json};

const OPTIONS: Options = Options {
    limits: coracle_oci::layer::Limits {
        bytes: 1 << 20,
        entries: 1000,
    },
    ownership: Ownership::Caller,
    decoders: None,
};

/// An archive in the making.
#[derive(Clone, Default)]
struct Saved {
    items: Vec<Item>,
    manifest: Vec<Value>,
}

fn hex(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).hex().to_owned()
}

fn layers() -> [Vec<u8>; 2] {
    [
        tar(&[dir("d"), file("d/a", "1"), file("d/b", "2")]),
        tar(&[file("d/.wh.a", ""), file("c", "3")]),
    ]
}

impl Saved {
    /// Adds an image whose layers have these names and contents, for the streams of `layers`.
    fn image(mut self, tags: &[&str], streams: &[Vec<u8>], names: &[&str]) -> Self {
        let diff_ids: Vec<String> = streams
            .iter()
            .map(|tar| format!("sha256:{}", hex(tar)))
            .collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string();
        let name = format!("{}.json", hex(config.as_bytes()));
        self.items.push(file(&name, &config));
        self.manifest
            .push(json!({"Config": name, "RepoTags": tags, "Layers": names}));
        self
    }

    fn item(mut self, item: Item) -> Self {
        self.items.push(item);
        self
    }

    fn write(&self, place: &Path) -> std::path::PathBuf {
        let manifest = file("manifest.json", json!(self.manifest).to_string());
        let items = [self.items.clone(), vec![manifest]].concat();
        let path = place.join("saved.tar");
        fs::write(&path, tar(&items)).unwrap();
        path
    }

    /// What the image unpacks to, or the error with its causes, in which the archive is called ARCHIVE.
    fn unpacked(&self, tag: Option<&str>) -> Result<Vec<String>, String> {
        let place = tempfile::tempdir().unwrap();
        let path = self.write(place.path());
        unpacked(&path, tag)
    }
}

fn unpacked(path: &Path, tag: Option<&str>) -> Result<Vec<String>, String> {
    let named = |text: String| text.replace(path.to_str().unwrap(), "ARCHIVE");
    let source = Source::open(path).map_err(|error| named(chain(&error)))?;
    let image = source.image(tag).map_err(|error| named(chain(&error)))?;
    let root = tempfile::tempdir().unwrap();
    let handle = fs::File::open(root.path()).unwrap();
    unpack(&source, &image, handle.into(), OPTIONS, None).map_err(|error| named(chain(&error)))?;
    Ok(listing(root.path()))
}

/// As dockers before 25 write it: a directory a layer.
fn older() -> Saved {
    let [lower, upper] = layers();
    Saved::default()
        .image(
            &["busybox:1"],
            &layers(),
            &["aaa/layer.tar", "bbb/layer.tar"],
        )
        .item(dir("aaa"))
        .item(file("aaa/VERSION", "1.0"))
        .item(file("aaa/json", "{}"))
        .item(file("aaa/layer.tar", lower))
        .item(file("bbb/layer.tar", upper))
        .item(file("repositories", r#"{"busybox":{"1":"bbb"}}"#))
}

const TREE: [&str; 3] = ["c file 644 3", "d dir 755", "d/b file 644 2"];

#[test]
fn older_archive_is_read() {
    assert_eq!(older().unpacked(None).unwrap(), TREE);
}

/// As docker 25 and later write it: a layout with docker's manifest beside it.
#[rstest]
#[case::of_the_layout(None)]
#[case::by_the_layouts_tag(Some("latest"))]
fn newer_archive_is_read(#[case] tag: Option<&str>) {
    let place = tempfile::tempdir().unwrap();
    let mut layout = Layout::with_image(&[
        &[dir("d"), file("d/a", "1"), file("d/b", "2")],
        &[file("d/.wh.a", ""), file("c", "3")],
    ]);
    // What it says is of no account beside the layout.
    layout
        .files
        .insert("manifest.json".to_owned(), b"[]".to_vec());
    let path = layout.write_archive(&place.path().join("saved.tar"));

    assert_eq!(unpacked(&path, tag).unwrap(), TREE);
}

#[test]
fn newer_archive_whose_layout_is_missing_is_read_by_dockers_manifest() {
    let [lower, upper] = layers();
    let names = [&lower, &upper].map(|tar| format!("blobs/sha256/{}", hex(tar)));
    let saved = Saved::default()
        .image(&["a:1"], &layers(), &[&names[0], &names[1]])
        .item(file(&names[0], &lower))
        .item(file(&names[1], &upper));

    assert_eq!(saved.unpacked(None).unwrap(), TREE);
}

#[rstest]
#[case::gzip(gzip)]
#[case::zstd(zstd)]
fn compressed_layers_are_told_by_their_content(#[case] compress: fn(&[u8]) -> Vec<u8>) {
    let [lower, upper] = layers();
    let saved = Saved::default()
        .image(&["a:1"], &layers(), &["lower.tar.gz", "./upper"])
        .item(file("lower.tar.gz", compress(&lower)))
        .item(file("upper", compress(&upper)));

    assert_eq!(saved.unpacked(None).unwrap(), TREE);
}

#[rstest]
#[case::symlink(symlink("bbb/layer.tar", "../real.tar"))]
#[case::hard_link(hard("bbb/layer.tar", "./real.tar"))]
fn layer_may_be_a_link(#[case] link: Item) {
    let [lower, upper] = layers();
    let saved = Saved::default()
        .image(&["a:1"], &layers(), &["aaa/layer.tar", "bbb/layer.tar"])
        .item(link)
        .item(file("aaa/layer.tar", lower))
        .item(file("real.tar", upper));

    assert_eq!(saved.unpacked(None).unwrap(), TREE);
}

#[test]
fn same_layer_twice_is_applied_twice() {
    let layer = tar(&[file("f", "x")]);
    let saved = Saved::default()
        .image(&["a:1"], &[layer.clone(), layer.clone()], &["l", "l"])
        .item(file("l", layer));

    assert_eq!(saved.unpacked(None).unwrap(), ["f file 644 x"]);
}

fn two_images() -> Saved {
    let [one, two] = ["1", "2"].map(|name| tar(&[file(name, "")]));
    Saved::default()
        .image(
            &["registry.example/a:1", "a:latest"],
            std::slice::from_ref(&one),
            &["one"],
        )
        .image(&["b:2"], std::slice::from_ref(&two), &["two"])
        .item(file("one", one))
        .item(file("two", two))
}

#[rstest]
#[case::whole_name(Some("registry.example/a:1"), Ok("1 file 644 "))]
#[case::tag_alone(Some("2"), Ok("2 file 644 "))]
#[case::latest(None, Ok("1 file 644 "))]
#[case::unknown(
    Some("3"),
    Err("image ARCHIVE has no tag `3`; it has `registry.example/a:1`, `a:latest`, `b:2`")
)]
fn image_is_chosen_by_its_name(#[case] tag: Option<&str>, #[case] expected: Result<&str, &str>) {
    let found = two_images().unpacked(tag);

    let expected = expected
        .map(|line| vec![line.to_owned()])
        .map_err(str::to_owned);
    assert_eq!(found, expected);
}

#[test]
fn image_without_a_name_is_found_where_it_is_the_only_one() {
    let layer = tar(&[file("f", "")]);
    let mut saved = Saved::default()
        .image(&[], std::slice::from_ref(&layer), &["l"])
        .item(file("l", layer));
    saved.manifest[0]["RepoTags"] = Value::Null;

    assert_eq!(saved.unpacked(None).unwrap(), ["f file 644 "]);
}

fn changed(change: impl FnOnce(&mut Saved)) -> Saved {
    let mut saved = older();
    change(&mut saved);
    saved
}

/// Of whom it is not known what it holds until all of it was read.
#[test]
fn compressed_layer_is_read_once_however_often_it_is_named() {
    let content: Vec<u8> = gzip(&tar(&[file("f", "x")]))
        .into_iter()
        .chain(std::iter::repeat_n(0, 4 << 20))
        .collect();
    let links = (0..500).map(|number| hard(format!("link{number}"), "l"));
    let names: Vec<String> = (0..500).map(|number| format!("link{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut saved = Saved::default()
        .image(&["a:1"], &vec![vec![]; 500], &names)
        .item(file("l", content));
    saved.items.extend(links);
    let place = tempfile::tempdir().unwrap();
    let path = saved.write(place.path());
    let started = Instant::now();

    let source = Source::open(&path).unwrap();
    let image = source.image(Some("a:1")).unwrap();

    assert_eq!(image.layers.len(), 500);
    // One reading takes a few hundredths of a second, 500 of them minutes where nothing is optimised.
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn only_the_chosen_image_is_looked_at() {
    let mut saved = two_images();
    saved.manifest[1]["Layers"] = json!(["missing"]);

    assert_eq!(saved.unpacked(Some("a:latest")).unwrap(), ["1 file 644 "]);
    assert_eq!(
        saved.unpacked(Some("b:2")).unwrap_err(),
        "image archive ARCHIVE is incomplete: it does not hold file `missing`"
    );
}

#[test]
fn names_are_told_without_a_look_at_the_images() {
    let mut saved = two_images();
    saved.manifest[1]["Config"] = json!("missing");
    let place = tempfile::tempdir().unwrap();
    let source = Source::open(saved.write(place.path())).unwrap();

    let names = source.names().unwrap();

    assert_eq!(names, ["registry.example/a:1", "a:latest", "b:2"]);
}

#[test]
fn index_is_made_up_of_all_images() {
    let place = tempfile::tempdir().unwrap();
    let source = Source::open(two_images().write(place.path())).unwrap();

    let index = source.index().unwrap();

    let layers = index
        .manifests
        .iter()
        .map(|descriptor| source.image_of(descriptor).unwrap().layers.len());
    assert_eq!(layers.collect::<Vec<_>>(), [1, 1, 1]);
}

#[rstest]
#[case::layer_missing(changed(|saved| saved.items.retain(|item| item.name != b"bbb/layer.tar")), "image archive ARCHIVE is incomplete: it does not hold file `bbb/layer.tar`")]
#[case::config_missing(changed(|saved| saved.manifest[0]["Config"] = json!("other.json")), "it does not hold file `other.json`")]
#[case::config_outside(changed(|saved| saved.manifest[0]["Config"] = json!("../../etc/passwd")), "it does not hold file `../../etc/passwd`")]
#[case::config_is_no_json(changed(|saved| saved.items[0].content = b"{".to_vec()), "of image ARCHIVE is not valid")]
#[case::manifest_of_another_form(changed(|saved| saved.manifest = vec![json!(1)]), "file `manifest.json` of image ARCHIVE is not valid")]
#[case::layer_of_other_content(changed(|saved| saved.items[4].content[600] ^= 1), "is damaged: its content has the digest")]
#[case::layer_of_other_size(changed(|saved| saved.items[4].content.truncate(1024)), "is damaged: its content has the digest")]
#[case::layers_and_digests_differ(changed(|saved| saved.manifest[0]["Layers"] = json!(["aaa/layer.tar"])), "has 1 layers, but its config states 2 of their digests")]
#[case::links_in_a_circle(changed(|saved| { saved.items[4] = symlink("aaa/layer.tar", "../x"); saved.items.push(symlink("x", "aaa/layer.tar")); }), "it does not hold file `aaa/layer.tar`")]
#[case::link_outside(changed(|saved| saved.items[4] = symlink("aaa/layer.tar", "../../etc/passwd")), "it does not hold file `aaa/layer.tar`")]
#[case::layer_of_xz(changed(|saved| saved.items[4].content = b"\xfd7zXZ\0".to_vec()), "file `aaa/layer.tar` of image ARCHIVE has the media type `xz`, which is not supported")]
#[case::many_images(changed(|saved| saved.manifest = vec![saved.manifest[0].clone(); 1001]), "image archive ARCHIVE holds 1001 images; the limit is 1000")]
#[case::many_images_of_one_name(changed(|saved| saved.manifest = vec![saved.manifest[0].clone(); 100]), "takes more than 16 indexes and manifests to find")]
#[case::many_layers(changed(|saved| saved.manifest[0]["Layers"] = json!(vec!["aaa/layer.tar"; 513])), "has 513 layers; the limit is 512")]
fn faulty_archive_is_refused(#[case] saved: Saved, #[case] message: &str) {
    let error = saved.unpacked(None).unwrap_err();

    assert!(error.contains(message), "{error}");
}

#[test]
fn image_for_another_platform_is_refused() {
    let saved = changed(|saved| {
        let config = String::from_utf8(saved.items[0].content.clone()).unwrap();
        saved.items[0].content = config.replace("amd64", "arm64").into_bytes();
    });

    assert_eq!(
        saved.unpacked(None).unwrap_err(),
        "image ARCHIVE is not for linux/amd64; it is for linux/arm64"
    );
}
