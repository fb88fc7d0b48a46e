// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Layers onto a tree: what is made, what is deleted, what is refused. Without privileges.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::tar::{Item, block, character, dir, fifo, file, hard, header, symlink, tar};
use common::{chain, listing};
use coracle_oci::layer::{Applier, Limits, Options, Ownership};
use coracle_oci::tree_hash::tree_hash;
use rstest::rstest;

/// A root to unpack into, beside a directory that nothing may touch.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    fn apply_streams(&self, layers: &[Vec<u8>], limits: Limits) -> Result<(), String> {
        let options = Options {
            limits,
            ownership: Ownership::Caller,
            ..Options::default()
        };
        let mut applier = Applier::new(File::open(self.root()).unwrap().into(), options);
        for (number, layer) in layers.iter().enumerate() {
            applier
                .layer(&format!("L{number}"), layer.as_slice())
                .map_err(|error| chain(&error))?;
        }
        applier.finish().map_err(|error| chain(&error))
    }

    fn apply(&self, layers: &[&[Item]]) -> Result<(), String> {
        let streams: Vec<Vec<u8>> = layers.iter().map(|items| tar(items)).collect();
        self.apply_streams(&streams, Limits::default())
    }
}

fn listing_of(layers: &[Vec<Item>]) -> Vec<String> {
    let ground = Ground::new();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let before = tree_hash(ground.outside()).unwrap();
    ground.apply(&layers).unwrap();
    assert_eq!(
        tree_hash(ground.outside()).unwrap(),
        before,
        "something outside of the root has changed"
    );
    listing(&ground.root())
}

fn long(name: &str) -> String {
    format!("{}/{name}", "d".repeat(150))
}

#[rstest]
#[case::kinds(
    vec![vec![dir("./").mode(0o755), dir("d").mode(0o700), file("d/f", "text"), symlink("s", "d/f"), fifo("p").mode(0o600)]],
    &["d dir 700", "d/f file 644 text", "p fifo 600", "s -> d/f"]
)]
#[case::modes(
    vec![vec![file("suid", "").mode(0o4755), file("sgid", "").mode(0o2750), dir("sticky").mode(0o1777)]],
    &["sgid file 2750 ", "sticky dir 1777", "suid file 4755 "]
)]
#[case::missing_directories_are_made(vec![vec![file("a/b/c", "")]], &["a dir 755", "a/b dir 755", "a/b/c file 644 "])]
#[case::directory_described_after_its_content(
    vec![vec![file("a/b", ""), dir("a").mode(0o711)]],
    &["a dir 711", "a/b file 644 "]
)]
#[case::long_names(
    vec![vec![file(long("f"), "x"), symlink("s", long("f")), hard("h", long("f"))]],
    &[&format!("{} dir 755", "d".repeat(150)), &format!("{} file 644 x", long("f")), "h file 644 x", &format!("s -> {}", long("f"))]
)]
#[case::pax_names(
    vec![vec![file("short", "x").pax("path", long("f")), symlink("s", "short").pax("linkpath", "../elsewhere")]],
    &[&format!("{} dir 755", "d".repeat(150)), &format!("{} file 644 x", long("f")), "s -> ../elsewhere"]
)]
#[case::directory_by_its_name_alone(vec![vec![Item::new(0, "old/").mode(0o750)]], &["old dir 750"])]
#[case::hard_link(vec![vec![file("a", "x"), hard("b", "a")]], &["a file 644 x", "b file 644 x"])]
#[case::hard_link_into_a_lower_layer(vec![vec![file("a", "x")], vec![hard("b", "./a")]], &["a file 644 x", "b file 644 x"])]
#[case::hard_link_to_a_symlink(vec![vec![symlink("a", "nowhere"), hard("b", "a")]], &["a -> nowhere", "b -> nowhere"])]
#[case::hard_link_to_itself(vec![vec![file("a", "x"), hard("a", "a")]], &["a file 644 x"])]
#[case::symlinks_are_stored_as_they_are(
    vec![vec![symlink("a", "/etc/passwd"), symlink("b", "../../x"), symlink("c", "a//./b/")]],
    &["a -> /etc/passwd", "b -> ../../x", "c -> a//./b/"]
)]
#[case::later_entry_of_a_name_wins(vec![vec![file("a", "1"), file("a", "2")]], &["a file 644 2"])]
#[case::file_replaced_in_one_name_only(
    vec![vec![file("a", "1"), hard("b", "a")], vec![file("a", "2")]],
    &["a file 644 2", "b file 644 1"]
)]
#[case::directory_keeps_what_is_in_it(
    vec![vec![dir("d").mode(0o700), file("d/f", "")], vec![dir("d").mode(0o750)]],
    &["d dir 750", "d/f file 644 "]
)]
#[case::directory_becomes_file(vec![vec![dir("d"), file("d/e/f", "")], vec![file("d", "x")]], &["d file 644 x"])]
#[case::file_becomes_directory(vec![vec![file("d", "x")], vec![dir("d"), file("d/f", "")]], &["d dir 755", "d/f file 644 "])]
#[case::symlink_becomes_directory(
    vec![vec![dir("t"), file("t/f", ""), symlink("d", "t")], vec![dir("d").mode(0o700)]],
    &["d dir 700", "t dir 755", "t/f file 644 "]
)]
#[case::symlink_becomes_file(vec![vec![file("t", "x"), symlink("s", "t")], vec![file("s", "y")]], &["s file 644 y", "t file 644 x"])]
#[case::directory_becomes_symlink(
    vec![vec![dir("lib"), file("lib/f", "")], vec![dir("usr"), symlink("lib", "usr"), file("lib/g", "")]],
    &["lib -> usr", "usr dir 755", "usr/g file 644 "]
)]
#[case::whiteout(
    vec![vec![file("a", ""), file("d/b", ""), dir("e"), file("e/f", "")], vec![file(".wh.a", ""), file("d/.wh.b", ""), file(".wh.e", "")]],
    &["d dir 755"]
)]
#[case::whiteout_of_what_is_not_there(vec![vec![file(".wh.a", ""), file("x/y/.wh.b", "")]], &[])]
#[case::whiteout_below_what_is_a_file_now(
    vec![vec![dir("d"), file("d/x", "")], vec![file("d", "new"), file("d/.wh.x", ""), file("d/.wh..wh..opq", "")]],
    &["d file 644 new"]
)]
#[case::whiteout_spares_its_own_layer(
    vec![vec![file("a", "old"), file("d/x", "old")], vec![file("a", "new"), file(".wh.a", ""), file("d/y", "new"), file(".wh.d", "")]],
    &["a file 644 new", "d dir 755", "d/y file 644 new"]
)]
#[case::whiteout_before_the_name(
    vec![vec![dir("d"), file("d/x", "old")], vec![file(".wh.d", ""), file("d/y", "new")]],
    &["d dir 755", "d/y file 644 new"]
)]
#[case::whiteout_of_a_symlink_spares_its_target(
    vec![vec![file("t", "x"), symlink("s", "t")], vec![file(".wh.s", "")]],
    &["t file 644 x"]
)]
#[case::whiteout_through_a_symlink(
    vec![vec![file("usr/f", ""), file("usr/g", ""), symlink("lib", "usr")], vec![file("lib/.wh.f", "")]],
    &["lib -> usr", "usr dir 755", "usr/g file 644 "]
)]
#[case::opaque(
    vec![vec![file("d/a", "old"), file("d/e/b", "old")], vec![dir("d"), file("d/.wh..wh..opq", ""), file("d/c", "new")]],
    &["d dir 755", "d/c file 644 new"]
)]
#[case::opaque_after_the_content(
    vec![vec![file("d/a", "old"), file("d/e/b", "old")], vec![file("d/e/c", "new"), file("d/.wh..wh..opq", "")]],
    &["d dir 755", "d/e dir 755", "d/e/c file 644 new"]
)]
#[case::opaque_root(vec![vec![file("a", ""), file("b/c", "")], vec![file("x", ""), file(".wh..wh..opq", "")]], &["x file 644 "])]
#[case::names_of_aufs_are_ignored(vec![vec![dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", ""), file(".wh..wh.aufs", "")]], &[])]
#[case::parent_is_a_symlink(
    vec![vec![dir("usr"), symlink("lib", "usr/lib"), dir("usr/lib"), file("lib/f", "x")]],
    &["lib -> usr/lib", "usr dir 755", "usr/lib dir 755", "usr/lib/f file 644 x"]
)]
#[case::parent_is_a_dangling_symlink(
    vec![vec![symlink("var/run", "/run/deep"), file("var/run/f", "x")]],
    &["run dir 755", "run/deep dir 755", "run/deep/f file 644 x", "var dir 755", "var/run -> /run/deep"]
)]
#[case::parent_leads_above_the_root(
    vec![vec![symlink("up", "../../../outside"), file("up/f", "x")]],
    &["outside dir 755", "outside/f file 644 x", "up -> ../../../outside"]
)]
#[case::parent_chain_of_symlinks(
    vec![vec![dir("x/y"), symlink("a", "b"), symlink("b", "x/../x/./y"), file("a/f", "")]],
    &["a -> b", "b -> x/../x/./y", "x dir 755", "x/y dir 755", "x/y/f file 644 "]
)]
#[case::hard_link_through_a_symlink(
    vec![vec![file("usr/f", "x"), symlink("lib", "/usr"), hard("h", "lib/f")]],
    &["h file 644 x", "lib -> /usr", "usr dir 755", "usr/f file 644 x"]
)]
#[case::not_unicode(
    vec![vec![file(b"\xff\xfe", "x"), file(b"\xfe\xff", "y"), dir(b"d\xe9"), symlink(b"d\xe9/s", b"../\xff\xfe"), hard(b"h\xc3", b"\xff\xfe")]],
    &["\\xfe\\xff file 644 y", "\\xff\\xfe file 644 x", "d\\xe9 dir 755", "d\\xe9/s -> ../\\xff\\xfe", "h\\xc3 file 644 x"]
)]
#[case::not_unicode_and_gone(
    vec![vec![file(b"\xff\xfe", "x"), file(b"\xfe\xff", "y")], vec![file(b".wh.\xff\xfe", "")]],
    &["\\xfe\\xff file 644 y"]
)]
#[case::longest_name(
    vec![vec![file("n".repeat(255), "x"), symlink("s", "n".repeat(255)), hard("h", "n".repeat(255))], vec![file(format!(".wh.{}", "n".repeat(251)), ""), file("n".repeat(254), "y")]],
    &["h file 644 x", &format!("{} file 644 y", "n".repeat(254)), &format!("{} file 644 x", "n".repeat(255)), &format!("s -> {}", "n".repeat(255))]
)]
#[case::empty_layer(vec![vec![file("a", "x")], vec![], vec![file("b", "y")]], &["a file 644 x", "b file 644 y"])]
#[case::same_layer_twice(
    vec![vec![dir("d").mode(0o700), file("d/f", "x"), hard("d/g", "d/f"), symlink("s", "d")], vec![dir("d").mode(0o700), file("d/f", "x"), hard("d/g", "d/f"), symlink("s", "d")]],
    &["d dir 700", "d/f file 644 x", "d/g file 644 x", "s -> d"]
)]
#[case::same_layer_of_whiteouts_twice(
    vec![vec![file("a", ""), file("d/b", "")], vec![file(".wh.a", ""), file("d/.wh..wh..opq", "")], vec![file(".wh.a", ""), file("d/.wh..wh..opq", "")]],
    &["d dir 755"]
)]
#[case::directory_becomes_file_becomes_directory(
    vec![vec![dir("d"), file("d/e/f", "")], vec![file("d", "x")], vec![dir("d").mode(0o750), file("d/g", "y")]],
    &["d dir 750", "d/g file 644 y"]
)]
#[case::whiteout_and_directory_again(
    vec![vec![dir("d"), file("d/old", "")], vec![file(".wh.d", "")], vec![dir("d"), file("d/new", "")]],
    &["d dir 755", "d/new file 644 "]
)]
#[case::opaque_directory_that_is_described_last(
    vec![vec![dir("d").mode(0o700), file("d/a", "old")], vec![file("d/b", "new"), file("d/.wh..wh..opq", ""), dir("d").mode(0o711)]],
    &["d dir 711", "d/b file 644 new"]
)]
#[case::opaque_spares_directories_of_its_layer_alone(
    vec![vec![file("d/x/old", ""), file("d/y/old", "")], vec![dir("d/x"), file("d/.wh..wh..opq", "")]],
    &["d dir 755", "d/x dir 755"]
)]
#[case::duplicate_directory_takes_the_last_mode(vec![vec![dir("d").mode(0o700), file("d/f", ""), dir("d").mode(0o711)]], &["d dir 711", "d/f file 644 "])]
#[case::duplicate_of_another_kind(vec![vec![file("a", "x"), symlink("a", "b"), dir("a"), fifo("a")]], &["a fifo 644"])]
#[case::hard_link_across_layers_survives_its_target(
    vec![vec![file("a", "x")], vec![hard("b", "a")], vec![file(".wh.a", "")]],
    &["b file 644 x"]
)]
#[case::hard_link_replaced_by_a_file(vec![vec![file("a", "x"), hard("b", "a")], vec![file("b", "y")]], &["a file 644 x", "b file 644 y"])]
#[case::hard_link_of_two_layers_below(
    vec![vec![file("a", "x")], vec![file("c", "z")], vec![hard("b", "a")]],
    &["a file 644 x", "b file 644 x", "c file 644 z"]
)]
#[case::fifo_is_deleted_and_replaced(vec![vec![fifo("p"), fifo("q")], vec![file(".wh.p", ""), file("q", "x")]], &["q file 644 x"])]
fn layers_make_a_tree(#[case] layers: Vec<Vec<Item>>, #[case] expected: &[&str]) {
    assert_eq!(listing_of(&layers), expected);
}

#[rstest]
#[case::parent("../escaped", "leaves its place through `..`")]
#[case::parent_in_the_middle("a/../../escaped", "leaves its place through `..`")]
#[case::absolute("/escaped", "has an absolute name")]
#[case::absolute_parent("/../escaped", "has an absolute name")]
#[case::bare_parent("..", "leaves its place through `..`")]
#[case::whiteout_of_the_parent("a/.wh...", "is a whiteout of no name")]
#[case::whiteout_through_the_parent("../.wh.outside", "leaves its place through `..`")]
#[case::inside_a_whiteout(".wh.a/b", "reserved for whiteouts")]
#[case::root_as_a_file("./", "would replace the root directory")]
fn name_that_escapes_is_refused(#[case] name: &str, #[case] message: &str) {
    let ground = Ground::new();
    let before = tree_hash(ground.outside()).unwrap();

    let error = ground
        .apply(&[&[file("fine", "")], &[file(name, "x")]])
        .unwrap_err();

    assert_eq!(
        error,
        format!(
            "layer L1 is refused: entry `{name}` {}",
            error.split(&format!("`{name}` ")).last().unwrap()
        )
    );
    assert!(error.contains(message), "{error}");
    assert_eq!(tree_hash(ground.outside()).unwrap(), before);
    assert!(!ground.directory.path().join("escaped").exists());
}

#[rstest]
#[case::absolute("/etc/passwd", "which has an absolute name")]
#[case::parent("../outside/secret", "which leaves its place through `..`")]
#[case::missing("nothing", "which does not exist")]
#[case::missing_below_a_missing_directory("no/thing", "which does not exist")]
#[case::directory("d", "which is a directory")]
#[case::root(".", "which is a directory")]
#[case::below_a_file("f/x", "which is not a directory")]
fn hard_link_to_what_is_not_a_file_inside_is_refused(#[case] target: &str, #[case] message: &str) {
    let ground = Ground::new();

    let error = ground
        .apply(&[&[dir("d"), file("f", ""), hard("link", target)]])
        .unwrap_err();

    assert!(
        error.starts_with("layer L0 is refused: entry `link` is "),
        "{error}"
    );
    assert!(error.contains(message), "{error}");
}

#[test]
fn hard_link_through_a_symlink_out_of_the_root_finds_nothing() {
    let ground = Ground::new();
    let outside = ground.outside();

    let error = ground
        .apply(&[&[
            symlink("out", outside.to_str().unwrap()),
            hard("link", "out/secret"),
        ]])
        .unwrap_err();

    assert_eq!(
        error,
        "layer L0 is refused: entry `link` is a hard link to `out/secret`, which does not exist"
    );
}

#[test]
fn hard_link_over_the_directory_of_its_target_is_refused() {
    let ground = Ground::new();

    let error = ground
        .apply(&[&[file("a/b", ""), hard("a", "a/b")]])
        .unwrap_err();

    assert!(error.contains("which does not exist"), "{error}");
}

#[test]
fn symlink_to_an_absolute_path_of_the_host_leads_inside() {
    let ground = Ground::new();
    let outside = ground.outside();
    let before = tree_hash(&outside).unwrap();

    ground
        .apply(&[
            &[symlink("out", outside.to_str().unwrap())],
            &[
                file("out/planted", "x"),
                file("out/.wh.secret", ""),
                file("out/.wh..wh..opq", ""),
            ],
        ])
        .unwrap();

    assert_eq!(tree_hash(&outside).unwrap(), before);
    let inside = ground
        .root()
        .join(outside.strip_prefix("/").unwrap())
        .join("planted");
    assert_eq!(fs::read_to_string(inside).unwrap(), "x");
}

#[rstest]
#[case::below_a_file(&[file("f", ""), file("f/x", "")], "is below `f`, which is not a directory")]
#[case::below_a_symlink_to_a_file(&[file("f", ""), symlink("s", "f"), file("s/x", "")], "is below `f`, which is not a directory")]
#[case::below_a_loop(&[symlink("a", "b"), symlink("b", "a"), file("a/x", "")], "is below a chain of more than 40 symlinks")]
#[case::symlink_to_nothing(&[symlink("s", "")], "is a symlink without a target")]
#[case::character_device(&[character("null", 1, 3)], "is a device node, which only root can make")]
#[case::block_device(&[block("sda", 8, 0)], "is a device node, which only root can make")]
#[case::nul_in_a_name(&[file("f", "").pax("path", "a\0b")], "has a NUL in its name")]
#[case::nul_in_a_target(&[symlink("s", "t").pax("linkpath", "a\0b")], "is a symlink without a target, or with a NUL")]
#[case::long_component(&[file("x".repeat(256), "")], "has a name with a component of more than 255 bytes")]
#[case::deep(&[dir("d/".repeat(257))], "has a path of more than 256 components")]
#[case::deep_through_a_symlink(&[dir("d/".repeat(250)), symlink("s", "d/".repeat(249)), file(format!("s/{}", "e/".repeat(10)), "")], "has a path of more than 256 components")]
#[case::unknown_type(&[Item::new(b'Z', "z")], "is of an unknown type, which is not supported")]
#[case::volume_label(&[Item::new(b'V', "z")], "is a volume label, which is not supported")]
#[case::continuation(&[Item::new(b'M', "z")], "is the continuation of another archive's file, which is not supported")]
#[case::directory_with_content(&[Item { kind: b'5', ..file("d", "content") }], "is not a file but has 7 bytes of content")]
#[case::owner_beyond_ids(&[file("f", "").pax("uid", "4294967295")], "has an invalid user id")]
#[case::negative_owner(&[file("f", "").pax("gid", "-1")], "has an invalid group id")]
#[case::malformed_pax(&[Item { content: b"nonsense".to_vec(), ..Item::new(b'x', "pax") }, file("f", "")], "is malformed")]
#[case::huge_pax(&[Item { content: vec![b'x'; 2 << 20], ..Item::new(b'x', "pax") }, file("f", "")], "have more than 1048576 bytes")]
#[case::huge_name(&[Item { content: vec![b'x'; 2 << 20], ..Item::new(b'L', "long") }, file("f", "")], "have more than 1048576 bytes")]
#[case::extension_without_entry(&[Item { content: b"x".to_vec(), ..Item::new(b'L', "long") }], "is truncated")]
fn entry_that_cannot_be_honoured_is_refused(#[case] items: &[Item], #[case] message: &str) {
    let error = Ground::new().apply(&[items]).unwrap_err();

    assert!(error.starts_with("layer L0 "), "{error}");
    assert!(error.contains(message), "{error}");
}

#[rstest]
#[case::nothing(0, None)]
#[case::inside_the_header(100, Some("is truncated"))]
#[case::inside_the_content(700, Some("is truncated"))]
#[case::before_the_end_mark(1024, None)]
#[case::inside_the_end_mark(1024 + 100, Some("is truncated"))]
fn stream_that_is_cut_is_refused(#[case] length: usize, #[case] message: Option<&str>) {
    let mut stream = tar(&[file("f", "x".repeat(512))]);
    stream.truncate(length);

    let outcome = Ground::new().apply_streams(&[stream], Limits::default());

    let error = outcome.err();
    assert_eq!(error.is_some(), message.is_some(), "{error:?}");
    assert!(
        error
            .unwrap_or_default()
            .contains(message.unwrap_or_default())
    );
}

#[test]
fn stream_without_the_padding_of_its_last_file_is_whole() {
    let ground = Ground::new();
    let mut stream = tar(&[file("f", "x".repeat(700))]);
    stream.truncate(512 + 700);

    ground.apply_streams(&[stream], Limits::default()).unwrap();

    assert_eq!(
        listing(&ground.root()),
        [format!("f file 644 {}", "x".repeat(700))]
    );
}

#[rstest]
#[case::noise(vec![7; 512])]
#[case::bit_flip({ let mut block = header(&file("f", "")).to_vec(); block[0] ^= 1; block })]
#[case::single_zero_block([vec![0; 512], vec![7; 512]].concat())]
fn block_that_is_no_header_is_refused(#[case] stream: Vec<u8>) {
    let error = Ground::new()
        .apply_streams(&[stream], Limits::default())
        .unwrap_err();

    assert!(error.contains("starts no tar header"), "{error}");
}

#[rstest]
#[case::bytes(Limits { bytes: 20_000, ..Limits::default() }, "the image unpacks to more than 20000 bytes")]
#[case::entries(Limits { entries: 3, ..Limits::default() }, "the image has more than 3 entries")]
fn limit_is_over_all_layers_and_in_the_message(#[case] limits: Limits, #[case] message: &str) {
    let layer = tar(&[file("f", "x".repeat(10_000)), file("g", "")]);

    let error = Ground::new()
        .apply_streams(&[layer.clone(), layer], limits)
        .unwrap_err();

    assert_eq!(error, format!("layer L1 is refused: {message}"));
}

#[test]
fn limits_that_are_just_enough_are_enough() {
    let layer = tar(&[file("f", ""), file("g", "")]);
    let limits = Limits {
        bytes: layer.len() as u64,
        entries: 2,
    };

    assert_eq!(Ground::new().apply_streams(&[layer], limits), Ok(()));
}

fn modified(path: &Path) -> (i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn times_are_the_entries() {
    let ground = Ground::new();

    ground
        .apply(&[
            &[
                dir("d").mtime(5_000),
                file("d/f", "").mtime(6_000),
                symlink("d/s", "f").mtime(7_000),
                fifo("d/p").mtime(8_000),
                file("d/fine", "").pax("mtime", "9000.25"),
                file("d/early", "").pax("mtime", "-1.5"),
            ],
            &[file("d/later", "")],
        ])
        .unwrap();

    let times = ["d", "d/f", "d/s", "d/p", "d/fine", "d/early"]
        .map(|name| modified(&ground.root().join(name)));
    assert_eq!(
        times,
        [
            (5_000, 0),
            (6_000, 0),
            (7_000, 0),
            (8_000, 0),
            (9_000, 250_000_000),
            (-2, 500_000_000)
        ]
    );
}

#[test]
fn times_of_directories_survive_later_layers() {
    let ground = Ground::new();

    ground
        .apply(&[
            &[
                dir("d").mtime(5_000),
                dir("d/e").mtime(6_000),
                file("d/e/f", ""),
                file("d/g", ""),
            ],
            &[file("d/e/.wh.f", ""), file("d/h", "")],
            &[
                dir("./").mtime(4_000),
                hard("d/e/link", "d/g"),
                file("d/.wh.h", ""),
            ],
        ])
        .unwrap();

    let times = [".", "d", "d/e"].map(|name| modified(&ground.root().join(name)));
    assert_eq!(times, [(4_000, 0), (5_000, 0), (6_000, 0)]);
}

#[test]
fn hard_links_across_layers_are_one_file() {
    let ground = Ground::new();

    ground
        .apply(&[
            &[file("a", "x")],
            &[hard("b", "a"), dir("d"), hard("d/c", "b")],
        ])
        .unwrap();

    let inode = |name: &str| fs::metadata(ground.root().join(name)).unwrap().ino();
    assert_eq!([inode("b"), inode("d/c")], [inode("a"); 2]);
}

#[test]
fn two_unpackings_are_equal() {
    let layers: [&[Item]; 2] = [
        &[file("a/b/c", "x"), symlink("s", "a")],
        &[file("s/d", ""), file("a/b/.wh.c", "")],
    ];
    let hash = || {
        let ground = Ground::new();
        ground.apply(&layers).unwrap();
        tree_hash(ground.root()).unwrap()
    };

    assert_eq!(hash(), hash());
}

#[test]
fn names_in_errors_are_one_line() {
    let error = Ground::new()
        .apply(&[&[file("../a\nlayer L0 is fine\x1b[2J", "")]])
        .unwrap_err();

    assert_eq!(error.lines().count(), 1);
    assert!(!error.contains('\x1b'));
}
