// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images in layouts and archives: found, refused, unpacked. Without privileges.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::image::{CONFIG, GZIP, INDEX, Layout, MANIFEST, TAR, gzip, zstd};
use common::tar::{Item, dir, file, tar};
use common::{chain, listing};
use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::{Image, Layer, Source};
use coracle_oci::layer::{Options, Ownership};
use coracle_oci::unpack::{Progress, unpack};
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

fn directory_of(layout: &Layout, place: &Path) -> PathBuf {
    layout.write_directory(&place.join("image"))
}

fn archive_of(layout: &Layout, place: &Path) -> PathBuf {
    layout.write_archive(&place.join("image.tar"))
}

/// Opens, finds and unpacks; gives the tree's listing or the error with its causes, in which the
/// image is called IMAGE.
fn unpacked(path: &Path, tag: Option<&str>) -> Result<Vec<String>, String> {
    let named = |text: String| text.replace(path.to_str().unwrap(), "IMAGE");
    let source = Source::open(path).map_err(|error| named(chain(&error)))?;
    let image = source.image(tag).map_err(|error| named(chain(&error)))?;
    unpack_to_listing(&source, &image).map_err(named)
}

/// Unpacks with and without threads: either way it comes to the same.
fn unpack_to_listing(source: &Source, image: &Image) -> Result<Vec<String>, String> {
    let [alone, together, one_ahead] = [0, 3, 1].map(|decoders| {
        let root = tempfile::tempdir().unwrap();
        let handle = fs::File::open(root.path()).unwrap();
        let options = Options {
            decoders: Some(decoders),
            ..OPTIONS
        };
        unpack(source, image, handle.into(), options, None).map_err(|error| chain(&error))?;
        Ok(listing(root.path()))
    });
    assert_eq!([&alone, &alone], [&together, &one_ahead]);
    alone
}

fn two_layers() -> Layout {
    Layout::with_image(&[
        &[dir("d"), file("d/a", "1"), file("d/b", "2")],
        &[file("d/.wh.a", ""), file("c", "3")],
    ])
}

#[rstest]
#[case::directory(directory_of)]
#[case::archive(archive_of)]
fn image_is_found_and_unpacked(#[case] write: fn(&Layout, &Path) -> PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = write(&two_layers(), place.path());

    let found = unpacked(&path, None).unwrap();

    assert_eq!(found, ["c file 644 3", "d dir 755", "d/b file 644 2"]);
}

#[test]
fn archive_whose_names_start_with_a_dot_is_read() {
    let place = tempfile::tempdir().unwrap();
    let items: Vec<Item> = two_layers()
        .files
        .iter()
        .map(|(name, content)| file(format!("./{name}"), content))
        .collect();
    let path = place.path().join("image.tar");
    fs::write(&path, tar(&items)).unwrap();

    assert!(unpacked(&path, Some("latest")).is_ok());
}

#[test]
fn image_without_layers_is_an_empty_tree() {
    let place = tempfile::tempdir().unwrap();
    let path = directory_of(&Layout::with_image(&[]), place.path());

    assert_eq!(unpacked(&path, None), Ok(vec![]));
}

#[rstest]
#[case::plain(TAR, |tar: &[u8]| tar.to_vec())]
#[case::gzip(GZIP, gzip)]
#[case::zstd("application/vnd.oci.image.layer.v1.tar+zstd", zstd)]
#[case::zstd_of_several_frames("application/vnd.oci.image.layer.v1.tar+zstd", |tar: &[u8]| [zstd(&tar[..600]), zstd(&tar[600..])].concat())]
#[case::gzip_of_several_streams(GZIP, |tar: &[u8]| [gzip(&tar[..600]), gzip(&tar[600..])].concat())]
#[case::docker("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip)]
fn layer_is_read_by_its_media_type(
    #[case] media_type: &str,
    #[case] compress: fn(&[u8]) -> Vec<u8>,
) {
    let stream = tar(&[file("f", "x".repeat(700))]);
    let mut layout = Layout::new();
    let layer = layout.blob(media_type, &compress(&stream));
    let diff_id = Digest::of(Algorithm::Sha256, &stream).to_string();
    let manifest = layout.manifest("amd64", &[layer], &[diff_id]);
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();

    let found = unpacked(&directory_of(&layout, place.path()), None).unwrap();

    assert_eq!(found, [format!("f file 644 {}", "x".repeat(700))]);
}

#[test]
fn digests_by_sha512_are_checked_too() {
    let stream = tar(&[file("f", "x")]);
    let digest = Digest::of(Algorithm::Sha512, &stream);
    let mut layout = Layout::new();
    layout
        .files
        .insert(format!("blobs/sha512/{}", digest.hex()), stream.clone());
    let layer = json!({"mediaType": TAR, "digest": digest.to_string(), "size": stream.len()});
    let manifest = layout.manifest("amd64", &[layer], &[digest.to_string()]);
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();

    let found = unpacked(&directory_of(&layout, place.path()), None).unwrap();

    assert_eq!(found, ["f file 644 x"]);
}

fn blob_changed(layout: &mut Layout) {
    let name = layout.largest_blob();
    let blob = layout.files.get_mut(&name).unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
}

fn blob_cut(layout: &mut Layout) {
    let name = layout.largest_blob();
    let blob = layout.files.get_mut(&name).unwrap();
    blob.truncate(blob.len() - 1);
}

fn blob_grown(layout: &mut Layout) {
    let name = layout.largest_blob();
    layout.files.get_mut(&name).unwrap().push(0);
}

fn blob_missing(layout: &mut Layout) {
    let name = layout.largest_blob();
    layout.files.remove(&name);
}

fn config_changed(layout: &mut Layout) {
    let config = layout
        .files
        .values_mut()
        .find(|content| content.starts_with(b"{\"architecture\""))
        .unwrap();
    let middle = config.len() / 2;
    config[middle] ^= 1;
}

#[rstest]
#[case::damaged_layer(blob_changed, "is damaged: its content has the digest sha256:")]
#[case::truncated_layer(blob_cut, "where its descriptor says")]
#[case::overlong_layer(blob_grown, "where its descriptor says")]
#[case::missing_layer(
    blob_missing,
    "image IMAGE is incomplete: it does not hold layer sha256:"
)]
#[case::damaged_config(config_changed, "is damaged: its content has the digest sha256:")]
fn faulty_blob_is_named(
    #[case] break_it: fn(&mut Layout),
    #[case] message: &str,
    #[values(directory_of, archive_of)] write: fn(&Layout, &Path) -> PathBuf,
) {
    let place = tempfile::tempdir().unwrap();
    let mut layout =
        Layout::with_image(&[&[file("f", (0..255).cycle().take(9000).collect::<Vec<u8>>())]]);
    break_it(&mut layout);

    let error = unpacked(&write(&layout, place.path()), None).unwrap_err();

    assert!(error.contains(message), "{error}");
}

#[rstest]
#[case::in_the_first_header(100)]
#[case::in_the_first_blob(512 + 10)]
#[case::in_the_middle(two_layers().archive().len() / 2)]
#[case::in_the_last_header(two_layers().archive().len() - 1024 - 512 - 100)]
fn truncated_archive_is_refused(#[case] length: usize) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image.tar");
    let mut archive = two_layers().archive();
    archive.truncate(length);
    fs::write(&path, archive).unwrap();

    let error = unpacked(&path, None).unwrap_err();

    assert!(
        error.starts_with("image archive IMAGE cannot be read: the tar stream is truncated"),
        "{error}"
    );
}

#[rstest]
#[case::noise(b"this is not a tar archive, although it is long enough for a header".repeat(20), "starts no tar header")]
#[case::gzip(
    gzip(b"anything"),
    "image archive IMAGE is compressed with gzip; decompress it first"
)]
#[case::zstd(vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "image archive IMAGE is compressed with zstd")]
#[case::empty(vec![], "IMAGE is not an OCI image layout, nor an archive of docker: it holds no oci-layout")]
#[case::empty_archive_of_docker(tar(&[file("manifest.json", "[]")]), "IMAGE holds no image")]
#[case::other_archive(tar(&[file("manifest.txt", "[]")]), "IMAGE is not an OCI image layout, nor an archive of docker: it holds no oci-layout")]
fn file_that_is_no_image_is_refused(#[case] content: Vec<u8>, #[case] message: &str) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image.tar");
    fs::write(&path, content).unwrap();

    let error = unpacked(&path, None).unwrap_err();

    assert!(error.contains(message), "{error}");
}

#[test]
fn image_that_is_not_there_is_refused() {
    assert_eq!(
        unpacked(Path::new("/nonexistent"), None),
        Err("image IMAGE does not exist".to_owned())
    );
}

#[test]
fn fifo_in_place_of_an_image_does_not_hang() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();

    let error = unpacked(&path, None).unwrap_err();

    assert_eq!(
        error,
        "image IMAGE is neither a directory nor a regular file"
    );
}

#[test]
fn blob_that_is_a_fifo_does_not_hang() {
    let place = tempfile::tempdir().unwrap();
    let layout = two_layers();
    let path = directory_of(&layout, place.path());
    let blob = path.join(layout.largest_blob());
    fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &blob,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();

    let error = unpacked(&path, None).unwrap_err();

    assert!(
        error.ends_with("cannot be read: not a regular file"),
        "{error}"
    );
}

#[test]
fn symlink_out_of_the_layout_is_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let layout = two_layers();
    let path = directory_of(&layout, place.path());
    fs::rename(path.join("index.json"), place.path().join("index.json")).unwrap();
    symlink("../index.json", path.join("index.json")).unwrap();

    let error = unpacked(&path, None).unwrap_err();

    assert!(
        error.starts_with("file index.json of image IMAGE cannot be read"),
        "{error}"
    );
}

/// A layout whose `name` holds `content` instead.
fn with_file(name: &str, content: &[u8]) -> Layout {
    let mut layout = two_layers();
    layout.files.insert(name.to_owned(), content.to_vec());
    layout
}

#[rstest]
#[case::no_index({ let mut layout = two_layers(); layout.files.remove("index.json"); layout }, "it holds no index.json")]
#[case::index_is_no_json(with_file("index.json", b"{"), "the index of image IMAGE is not valid")]
#[case::index_is_something_else(
    with_file("index.json", b"[]"),
    "the index of image IMAGE is not valid"
)]
#[case::index_is_empty(
    with_file("index.json", br#"{"manifests":[]}"#),
    "IMAGE holds no image"
)]
#[case::index_is_huge(with_file("index.json", &vec![b' '; 5 << 20]), "file index.json of image IMAGE has 5242880 bytes; the limit is 4194304")]
#[case::index_with_bad_digest(
    with_file(
        "index.json",
        br#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#
    ),
    "is not a digest"
)]
#[case::index_with_negative_size(with_file("index.json", br#"{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":-1}]}"#), "the index of image IMAGE is not valid")]
#[case::other_version(
    with_file("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#),
    "is an OCI image layout of version `2.0.0`"
)]
fn faulty_layout_is_refused(#[case] layout: Layout, #[case] message: &str) {
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert!(error.contains(message), "{error}");
}

#[test]
fn document_of_absurd_size_is_not_read() {
    let mut layout = Layout::new();
    let mut manifest = layout.image("amd64", &[]);
    manifest["size"] = json!(1_u64 << 60);
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert!(
        error.contains("has 1152921504606846976 bytes; the limit is 4194304"),
        "{error}"
    );
}

/// A layout of one manifest that was changed before it was written.
fn with_manifest(change: impl FnOnce(&mut Layout, &mut Value)) -> Layout {
    let mut layout = Layout::new();
    let config = layout.json(
        CONFIG,
        &json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}}),
    );
    let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    change(&mut layout, &mut manifest);
    let descriptor = layout.json(MANIFEST, &manifest);
    layout.add(descriptor);
    layout
}

fn layer_of_type(media_type: &str) -> Layout {
    with_manifest(|layout, manifest| {
        let layer = layout.blob(media_type, b"content");
        let diff_id = layer["digest"].clone();
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [diff_id]}});
        manifest["config"] = layout.json(CONFIG, &config);
        manifest["layers"] = json!([layer]);
    })
}

#[rstest]
#[case::encrypted(
    layer_of_type("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
    "has the media type `application/vnd.oci.image.layer.v1.tar+gzip+encrypted`, which is not supported"
)]
#[case::unknown_digest(
    with_manifest(|_, manifest| manifest["config"]["digest"] = json!("blake3:00")),
    "digest `blake3:00` is by an algorithm that is not supported: `blake3`; sha256 and sha512 are"
)]
#[case::chart(with_manifest(|layout, manifest| manifest["config"] = layout.json("application/vnd.cncf.helm.config.v1+json", &json!({}))), "has the media type `application/vnd.cncf.helm.config.v1+json`")]
#[case::layers_without_diff_ids(with_manifest(|layout, manifest| manifest["layers"] = json!([layout.blob(TAR, b"")])), "has 1 layers, but its config states 0 of their digests")]
#[case::other_type_in_the_document(with_manifest(|_, manifest| manifest["mediaType"] = json!(INDEX)), "is ambiguous: its descriptor says")]
#[case::manifest_and_index_at_once(with_manifest(|_, manifest| manifest["manifests"] = json!([])), "is not valid")]
#[case::too_many_layers(with_manifest(|layout, manifest| { let layer = layout.blob(TAR, b""); manifest["layers"] = json!(vec![layer; 513]) }), "has 513 layers; the limit is 512")]
fn faulty_manifest_is_refused(#[case] layout: Layout, #[case] message: &str) {
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert!(error.contains(message), "{error}");
}

#[test]
fn layer_other_than_the_configs_is_refused() {
    let mut layout = Layout::new();
    let stream = tar(&[file("f", "x")]);
    let layer = layout.blob(GZIP, &gzip(&stream));
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    let manifest = layout.manifest(
        "amd64",
        std::slice::from_ref(&layer),
        std::slice::from_ref(&other),
    );
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    let found = Digest::of(Algorithm::Sha256, &stream);
    let layer = layer["digest"].as_str().unwrap();
    assert_eq!(
        error,
        format!(
            "layer {layer} is damaged: uncompressed it has the digest {found}, its image's config says {other}"
        )
    );
}

#[test]
fn bytes_after_the_last_entry_belong_to_the_digest() {
    let mut layout = Layout::new();
    let stream = [tar(&[file("f", "x")]), b"more".to_vec()].concat();
    let layer = layout.blob(GZIP, &gzip(&stream));
    let manifest = layout.manifest(
        "amd64",
        &[layer],
        &[Digest::of(Algorithm::Sha256, &stream).to_string()],
    );
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();

    assert!(unpacked(&directory_of(&layout, place.path()), None).is_ok());
}

#[test]
fn layer_that_unpacks_a_thousandfold_is_stopped() {
    let layout = Layout::with_image(&[&[file("zeros", vec![0; 8 << 20])]]);
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert!(
        error.ends_with("is refused: the image unpacks to more than 1048576 bytes"),
        "{error}"
    );
}

/// Counts what was read of blobs when the first layer is to be applied, after time enough to read them all.
#[derive(Default)]
struct AtFirst {
    read: AtomicU64,
    at_first: AtomicU64,
}

impl Progress for AtFirst {
    fn advanced(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn layer_begun(&self, index: usize, _: &Layer) {
        if index == 0 {
            thread::sleep(Duration::from_millis(300));
            let read = self.read.load(Ordering::Relaxed);
            self.at_first.store(read, Ordering::Relaxed);
        }
    }
}

#[test]
fn no_more_is_decoded_ahead_than_there_are_threads_for() {
    const MIB: usize = 1 << 20;
    let content: Vec<Vec<u8>> = (0..40).map(|number| vec![number; MIB]).collect();
    let mut layout = Layout::new();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for content in &content {
        let layer = layout.blob(TAR, &tar(&[file("f", content)]));
        diff_ids.push(layer["digest"].as_str().unwrap().to_owned());
        layers.push(layer);
    }
    let manifest = layout.manifest("amd64", &layers, &diff_ids);
    layout.add(manifest);
    let place = tempfile::tempdir().unwrap();
    let source = Source::open(directory_of(&layout, place.path())).unwrap();
    let image = source.image(None).unwrap();
    let options = Options {
        ownership: Ownership::Caller,
        decoders: Some(2),
        ..Options::default()
    };
    let root = tempfile::tempdir().unwrap();
    let progress = AtFirst::default();

    let handle = fs::File::open(root.path()).unwrap();
    unpack(&source, &image, handle.into(), options, Some(&progress)).unwrap();

    let at_first = progress.at_first.load(Ordering::Relaxed);
    assert!(
        at_first < 4 * MIB as u64,
        "{at_first} bytes were read ahead"
    );
    assert!(progress.read.load(Ordering::Relaxed) > 40 * MIB as u64);
}

/// zstd that says to take the largest window, of blocks that are not compressed.
fn with_large_window(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    for block in content.chunks(100_000) {
        let head = (block.len() as u32) << 3;
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}

fn of_large_windows(damage: impl Fn(usize, &mut Vec<u8>)) -> Layout {
    let mut layout = Layout::new();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..8 {
        let mut stream = tar(&[file(format!("f{number}"), vec![b'x'; 100_000])]);
        diff_ids.push(Digest::of(Algorithm::Sha256, &stream).to_string());
        damage(number, &mut stream);
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        layers.push(layout.blob(media_type, &with_large_window(&stream)));
    }
    let manifest = layout.manifest("amd64", &layers, &diff_ids);
    layout.add(manifest);
    layout
}

#[test]
fn layers_of_large_windows_are_unpacked_one_after_the_other() {
    let place = tempfile::tempdir().unwrap();
    let layout = of_large_windows(|_, _| {});

    let found = unpacked(&directory_of(&layout, place.path()), None).unwrap();

    assert_eq!(found.len(), 8);
}

#[rstest]
#[case::no_archive(0)]
#[case::other_content(70_000)]
#[case::bytes_at_the_end(usize::MAX)]
fn faulty_layer_before_large_windows_is_told(#[case] at: usize) {
    let place = tempfile::tempdir().unwrap();
    let layout = of_large_windows(|number, stream| {
        if number == 1 {
            let at = at.min(stream.len() - 1);
            stream[at] ^= 1;
        }
    });

    assert!(unpacked(&directory_of(&layout, place.path()), None).is_err());
}

/// One image a tag, each with a file of the tag's name.
fn tagged(tags: &[&str]) -> Layout {
    let mut layout = Layout::new();
    for tag in tags {
        let name = tag.replace(['/', ':'], "_");
        let manifest = layout.image("amd64", &[&[file(&name, "")]]);
        layout.tag(tag, manifest);
    }
    layout
}

#[rstest]
#[case::the_only_one(&["v1"], None, Ok("v1"))]
#[case::the_one_named(&["v1", "v2"], Some("v2"), Ok("v2"))]
#[case::latest(&["v1", "latest"], None, Ok("latest"))]
#[case::end_of_a_whole_name(&["docker.io/library/busybox:1", "v1"], Some("1"), Ok("docker.io_library_busybox_1"))]
#[case::whole_name(&["docker.io/library/busybox:1"], Some("docker.io/library/busybox:1"), Ok("docker.io_library_busybox_1"))]
#[case::exact_name_before_the_end_of_another(&["x:v1", "v1"], Some("v1"), Ok("v1"))]
#[case::none_of_several(&["v1", "v2"], None, Err("IMAGE holds several images; choose one by its tag: `v1`, `v2`"))]
#[case::unknown(&["v1", "v2"], Some("v3"), Err("image IMAGE has no tag `v3`; it has `v1`, `v2`"))]
fn image_is_chosen_by_its_tag(
    #[case] tags: &[&str],
    #[case] tag: Option<&str>,
    #[case] expected: Result<&str, &str>,
) {
    let place = tempfile::tempdir().unwrap();

    let found = unpacked(&directory_of(&tagged(tags), place.path()), tag);

    let expected = expected
        .map(|name| vec![format!("{name} file 644 ")])
        .map_err(str::to_owned);
    assert_eq!(found, expected);
}

fn for_platform(mut descriptor: Value, platform: &Value) -> Value {
    descriptor["platform"] = platform.clone();
    descriptor
}

/// A layout whose only entry is an index of images, each for an architecture and with a file of
/// its name.
fn variants(architectures: &[&str], state_platforms: bool) -> Layout {
    let mut layout = Layout::new();
    let manifests: Vec<Value> = architectures
        .iter()
        .map(|architecture| {
            let manifest = layout.image(architecture, &[&[file(architecture, "")]]);
            let platform = json!({"os": "linux", "architecture": architecture});
            if state_platforms {
                for_platform(manifest, &platform)
            } else {
                manifest
            }
        })
        .collect();
    let index = layout.json(
        INDEX,
        &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}),
    );
    layout.tag("latest", index);
    layout
}

#[rstest]
#[case::stated(true)]
#[case::by_their_configs(false)]
fn variant_for_this_platform_is_chosen(#[case] state_platforms: bool) {
    let place = tempfile::tempdir().unwrap();
    let layout = variants(&["arm64", "amd64", "s390x"], state_platforms);

    assert_eq!(
        unpacked(&directory_of(&layout, place.path()), None),
        Ok(vec!["amd64 file 644 ".to_owned()])
    );
}

#[rstest]
#[case::stated(true)]
#[case::by_their_configs(false)]
fn image_for_other_platforms_is_refused(#[case] state_platforms: bool) {
    let place = tempfile::tempdir().unwrap();
    let layout = variants(&["arm64", "s390x"], state_platforms);

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert_eq!(
        error,
        "image IMAGE is not for linux/amd64; it is for linux/arm64, linux/s390x"
    );
}

#[test]
fn artifact_beside_an_image_is_passed_over() {
    let mut layout = Layout::new();
    let config = layout.json("application/vnd.cncf.helm.config.v1+json", &json!({}));
    let artifact = layout.json(
        MANIFEST,
        &json!({"schemaVersion": 2, "config": config, "layers": []}),
    );
    let other = layout.blob("text/plain", b"text");
    let image = layout.image("amd64", &[&[file("f", "")]]);
    for descriptor in [artifact, other, image] {
        layout.add(descriptor);
    }
    let place = tempfile::tempdir().unwrap();

    assert_eq!(
        unpacked(&directory_of(&layout, place.path()), None),
        Ok(vec!["f file 644 ".to_owned()])
    );
}

#[test]
fn plainest_variant_of_the_architecture_is_chosen() {
    let mut layout = Layout::new();
    for variant in ["v3", "v1", "v2"] {
        let manifest = layout.image("amd64", &[&[file(variant, "")]]);
        layout.add(for_platform(
            manifest,
            &json!({"os": "linux", "architecture": "amd64", "variant": variant}),
        ));
    }
    let place = tempfile::tempdir().unwrap();

    assert_eq!(
        unpacked(&directory_of(&layout, place.path()), None),
        Ok(vec!["v1 file 644 ".to_owned()])
    );
}

#[test]
fn attestations_beside_an_image_are_passed_over() {
    let mut layout = Layout::new();
    let attestation = layout.json(MANIFEST, &json!({"an": "attestation"}));
    layout.add(for_platform(
        attestation,
        &json!({"os": "unknown", "architecture": "unknown"}),
    ));
    let manifest = layout.image("amd64", &[&[file("f", "")]]);
    layout.add(for_platform(
        manifest,
        &json!({"os": "linux", "architecture": "amd64"}),
    ));
    let place = tempfile::tempdir().unwrap();

    assert_eq!(
        unpacked(&directory_of(&layout, place.path()), None),
        Ok(vec!["f file 644 ".to_owned()])
    );
}

fn nested(depth: usize) -> Layout {
    let mut layout = Layout::new();
    let mut inner = layout.image("amd64", &[&[file("f", "")]]);
    for _ in 0..depth {
        inner = layout.json(INDEX, &json!({"manifests": [inner]}));
    }
    layout.add(inner);
    layout
}

#[test]
fn index_in_an_index_is_followed() {
    let place = tempfile::tempdir().unwrap();

    assert!(unpacked(&directory_of(&nested(3), place.path()), None).is_ok());
}

#[test]
fn indexes_without_an_end_are_refused() {
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&nested(64), place.path()), None).unwrap_err();

    assert_eq!(
        error,
        "image IMAGE takes more than 16 indexes and manifests to find"
    );
}

#[test]
fn indexes_that_are_large_together_are_refused() {
    let mut layout = Layout::new();
    let mut inner = layout.image("amd64", &[]);
    for _ in 0..6 {
        let mut index = json!({"manifests": [inner]}).to_string();
        index.extend(std::iter::repeat_n(' ', 3 << 20));
        inner = layout.blob(INDEX, index.as_bytes());
    }
    layout.add(inner);
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert_eq!(
        error,
        "image IMAGE takes more than 16777216 bytes of indexes and manifests to find"
    );
}

#[test]
fn indexes_in_a_circle_are_refused() {
    let mut layout = Layout::new();
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    // No two documents can hold each other's digests: files can only say so.
    let (one, two) = (digest("one"), digest("two"));
    let index = |other: &Digest| {
        json!({"manifests": [{"mediaType": INDEX, "digest": other.to_string(), "size": 159}]})
            .to_string()
    };
    for (digest, other) in [(&one, &two), (&two, &one)] {
        let name = format!("blobs/sha256/{}", digest.hex());
        layout.files.insert(name, index(other).into_bytes());
    }
    let size = index(&one).len();
    layout.add(json!({"mediaType": INDEX, "digest": one.to_string(), "size": size}));
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert!(error.contains(&format!("blob {one} is damaged")), "{error}");
}

#[test]
fn indexes_that_fan_out_are_refused() {
    let mut layout = Layout::new();
    let mut inner = layout.image("arm64", &[]);
    for _ in 0..10 {
        inner = layout.json(INDEX, &json!({"manifests": vec![inner; 10]}));
    }
    layout.add(inner);
    let place = tempfile::tempdir().unwrap();

    let error = unpacked(&directory_of(&layout, place.path()), None).unwrap_err();

    assert_eq!(
        error,
        "image IMAGE takes more than 16 indexes and manifests to find"
    );
}
