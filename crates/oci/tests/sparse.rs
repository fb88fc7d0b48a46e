// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sparse files in layers, in every format that tar has for them: their holes stay holes. Without privileges.

mod common;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::chain;
use common::tar::{Item, file, header, tar};
use coracle_oci::layer::{Applier, Options, Ownership};
use rstest::rstest;

fn applied(stream: impl Read) -> Result<tempfile::TempDir, String> {
    let root = tempfile::tempdir().unwrap();
    let options = Options {
        ownership: Ownership::Caller,
        ..Options::default()
    };
    let mut applier = Applier::new(File::open(root.path()).unwrap().into(), options);
    applier.layer("L", stream).map_err(|error| chain(&error))?;
    applier.finish().map_err(|error| chain(&error))?;
    Ok(root)
}

/// A map: offsets and lengths.
type Map<'m> = &'m [(u64, u64)];

/// Header and blocks of the old GNU format, with `content` after them.
fn old_gnu(size: u64, map: Map<'_>, content: &[u8]) -> Vec<u8> {
    let mut block = header(&Item {
        content: content.to_vec(),
        ..Item::new(b'S', "f")
    });
    let (first, rest) = map.split_at(map.len().min(4));
    fields(&mut block[386..], first);
    block[482] = u8::from(!rest.is_empty());
    block[483..494].copy_from_slice(format!("{size:011o}").as_bytes());
    checksum(&mut block);
    let mut stream = block.to_vec();
    for (number, part) in rest.chunks(21).enumerate() {
        let mut block = [0; 512];
        fields(&mut block, part);
        block[504] = u8::from((number + 1) * 21 < rest.len());
        stream.extend_from_slice(&block);
    }
    stream.extend_from_slice(content);
    stream.resize(stream.len().next_multiple_of(512) + 1024, 0);
    stream
}

fn fields(block: &mut [u8], map: Map<'_>) {
    for (field, (offset, length)) in block.chunks_exact_mut(24).zip(map) {
        field[..11].copy_from_slice(format!("{offset:011o}").as_bytes());
        field[12..23].copy_from_slice(format!("{length:011o}").as_bytes());
    }
}

fn checksum(block: &mut [u8; 512]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn pax_0_0(size: u64, map: Map<'_>, content: &[u8]) -> Vec<u8> {
    let mut item = file("f", content)
        .pax("GNU.sparse.size", size.to_string())
        .pax("GNU.sparse.numblocks", map.len().to_string());
    for (offset, length) in map {
        item = item
            .pax("GNU.sparse.offset", offset.to_string())
            .pax("GNU.sparse.numbytes", length.to_string());
    }
    tar(&[item])
}

fn pax_0_1(size: u64, map: Map<'_>, content: &[u8]) -> Vec<u8> {
    let numbers: Vec<String> = map
        .iter()
        .map(|(offset, length)| format!("{offset},{length}"))
        .collect();
    tar(&[file("GNUSparseFile.1/f", content)
        .pax("GNU.sparse.size", size.to_string())
        .pax("GNU.sparse.numblocks", map.len().to_string())
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.map", numbers.join(","))])
}

fn pax_1_0(size: u64, map: Map<'_>, content: &[u8]) -> Vec<u8> {
    let mut stored = format!("{}\n", map.len()).into_bytes();
    for (offset, length) in map {
        stored.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    stored.resize(stored.len().next_multiple_of(512), 0);
    stored.extend_from_slice(content);
    tar(&[file("GNUSparseFile.1/f", stored)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.realsize", size.to_string())])
}

type Format = fn(u64, Map<'_>, &[u8]) -> Vec<u8>;

/// As many parts as take several blocks of a map.
fn many_parts() -> Vec<(u64, u64)> {
    (0..100).map(|number| (number * 8192, 3)).collect()
}

#[rstest]
#[case::hole_first(20_000, &[(16_384, 3_616)])]
#[case::hole_last(20_000, &[(0, 100), (20_000, 0)])]
#[case::holes_between(100_000, &[(4_096, 10), (50_000, 700), (99_999, 1)])]
#[case::nothing_but_a_hole(1 << 20, &[(1 << 20, 0)])]
#[case::no_hole(1000, &[(0, 1000)])]
#[case::empty(0, &[(0, 0)])]
#[case::many_parts(900_000, &many_parts())]
fn content_is_put_where_the_map_says(
    #[case] size: u64,
    #[case] map: Map<'_>,
    #[values(old_gnu, pax_0_0, pax_0_1, pax_1_0)] format: Format,
) {
    let stored: u64 = map.iter().map(|(_, length)| length).sum();
    let content: Vec<u8> = (1..=255)
        .cycle()
        .take(usize::try_from(stored).unwrap())
        .collect();
    let mut expected = vec![0; usize::try_from(size).unwrap()];
    let mut rest = content.as_slice();
    for (offset, length) in map {
        let (part, after) = rest.split_at(usize::try_from(*length).unwrap());
        let offset = usize::try_from(*offset).unwrap();
        expected[offset..offset + part.len()].copy_from_slice(part);
        rest = after;
    }

    let root = applied(format(size, map, &content).as_slice()).unwrap();

    assert!(fs::read(root.path().join("f")).unwrap() == expected);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

const GIB: u64 = 1 << 30;

#[rstest]
fn five_gibibytes_of_hole_take_no_room(
    #[values(old_gnu, pax_0_0, pax_0_1, pax_1_0)] format: Format,
) {
    let map = [(0, 5), (5 * GIB - 4, 4)];

    let root = applied(format(5 * GIB, &map, b"startends").as_slice()).unwrap();

    let path = root.path().join("f");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 5 * GIB);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    let mut end = [0; 4];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut end, 5 * GIB - 4)
        .unwrap();
    assert_eq!(&end, b"ends");
}

#[test]
fn entry_after_a_sparse_file_is_found() {
    let sparse = pax_1_0(9000, &[(8000, 4)], b"text");
    let stream = [&sparse[..sparse.len() - 1024], &tar(&[file("g", "x")])].concat();

    let root = applied(stream.as_slice()).unwrap();

    assert_eq!(fs::read_to_string(root.path().join("g")).unwrap(), "x");
}

/// A layer with one file of `size` bytes, which `content` gives.
fn layer_of(size: u64, content: impl Read) -> impl Read {
    let mut block = header(&file("f", ""));
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    checksum(&mut block);
    io::Cursor::new(block)
        .chain(content.take(size))
        .chain(io::repeat(0).take(1024))
}

#[test]
fn zeros_that_are_written_in_full_become_a_hole() {
    let size: u64 = 64 << 20;
    let content = io::Cursor::new(b"start").chain(io::repeat(0));

    let root = applied(layer_of(size, content)).unwrap();

    let metadata = fs::metadata(root.path().join("f")).unwrap();
    assert_eq!(metadata.len(), size);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    let mut start = [1; 8];
    File::open(root.path().join("f"))
        .unwrap()
        .read_exact(&mut start)
        .unwrap();
    assert_eq!(&start, b"start\0\0\0");
}

#[rstest]
#[case::old_overlap(old_gnu(100, &[(0, 5), (4, 4)], b"123456789"), "its parts overlap")]
#[case::old_beyond_the_end(old_gnu(8, &[(0, 9)], b"123456789"), "a part is beyond the end of the file")]
#[case::old_short_content(old_gnu(100, &[(0, 10)], b"123456789"), "its parts are not as long as the content")]
#[case::old_of_negative_length({ let mut stream = old_gnu(100, &[(0, 9)], b"123456789"); stream[398] = 0xff; refit(stream) }, "it holds what is not a number")]
#[case::pax_beyond_the_end(pax_0_1(8, &[(0, 9)], b"123456789"), "a part is beyond the end of the file")]
#[case::pax_of_odd_length(tar(&[file("f", "").pax("GNU.sparse.size", "1").pax("GNU.sparse.map", "1")]), "it is not one of its version")]
#[case::pax_without_a_size(tar(&[file("f", "").pax("GNU.sparse.map", "0,0")]), "the size of the file is not stated")]
#[case::pax_of_other_count(tar(&[file("f", "").pax("GNU.sparse.size", "1").pax("GNU.sparse.numblocks", "2").pax("GNU.sparse.map", "0,0")]), "another number of parts")]
#[case::pax_of_a_later_version(tar(&[file("f", "").pax("GNU.sparse.major", "2")]), "it is of an unknown version")]
#[case::new_without_a_map(pax_1_0_of(b""), "it has no end")]
#[case::new_cut_map(pax_1_0_of(&[b'1'; 512]), "it holds a number beyond any")]
#[case::new_endless_map(pax_1_0_of(&b"1\n".repeat(1 << 20)), "have more than 1048576 bytes")]
#[case::larger_than_any(pax_0_1(u64::MAX, &[(0, 1)], b"1"), "the file is larger than any")]
fn map_that_cannot_be_honoured_is_refused(#[case] stream: Vec<u8>, #[case] message: &str) {
    let error = applied(stream.as_slice()).unwrap_err();

    assert!(error.contains(message), "{error}");
}

/// With the checksum of its first header made anew.
fn refit(mut stream: Vec<u8>) -> Vec<u8> {
    checksum(stream.first_chunk_mut().unwrap());
    stream
}

fn pax_1_0_of(stored: &[u8]) -> Vec<u8> {
    // The count is so large that numbers alone never end it.
    let stored = match stored {
        [b'1', b'\n', ..] => [b"9999999\n".as_slice(), stored].concat(),
        _ => stored.to_vec(),
    };
    tar(&[file("f", stored)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.realsize", "100")])
}

#[test]
fn cut_sparse_file_is_refused() {
    let mut stream = pax_1_0(9000, &[(0, 2000)], &[1; 2000]);
    stream.truncate(stream.len() - 1024 - 600);

    let error = applied(stream.as_slice()).unwrap_err();

    assert!(error.contains("is truncated"), "{error}");
}
