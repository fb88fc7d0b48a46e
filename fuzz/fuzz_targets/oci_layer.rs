// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Layers with any entries, most of them well formed, onto a directory: nothing beside it changes.
#![no_main]

mod tar;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use coracle_oci::digest::Digest;
use coracle_oci::layer::{Applier, Limits, Options, Ownership};
use coracle_oci::tree_hash::tree_hash;
use libfuzzer_sys::fuzz_target;

use tar::{block, record};

/// Few names, so that entries meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Part {
    A,
    B,
    Here,
    Parent,
    Nothing,
    Outside,
    Whiteout,
    WhiteoutOfParent,
    WhiteoutOfOutside,
    Opaque,
    NotUnicode,
    Long,
}

impl Part {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::A => b"a".to_vec(),
            Self::B => b"b".to_vec(),
            Self::Here => b".".to_vec(),
            Self::Parent => b"..".to_vec(),
            Self::Nothing => Vec::new(),
            Self::Outside => b"outside".to_vec(),
            Self::Whiteout => b".wh.a".to_vec(),
            Self::WhiteoutOfParent => b".wh...".to_vec(),
            Self::WhiteoutOfOutside => b".wh.outside".to_vec(),
            Self::Opaque => b".wh..wh..opq".to_vec(),
            Self::NotUnicode => vec![0xff],
            Self::Long => vec![b'x'; 120],
        }
    }
}

/// A path of parts; with `absolute`, one that starts at the directory beside the root.
#[derive(Arbitrary, Clone, Debug)]
struct Name {
    absolute: bool,
    parts: Vec<Part>,
}

impl Name {
    fn bytes(&self) -> Vec<u8> {
        let start = if self.absolute {
            format!("{}/", ground().display()).into_bytes()
        } else {
            Vec::new()
        };
        let parts: Vec<Vec<u8>> = self.parts.iter().take(8).map(|part| part.bytes()).collect();
        [start, parts.join(&b'/')].concat()
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    File,
    OldFile,
    OldSparse,
    HardLink,
    Symlink,
    Device,
    Directory,
    Fifo,
    Pax,
    Any(u8),
}

#[derive(Arbitrary, Clone, Debug)]
struct Item {
    kind: Kind,
    name: Name,
    link: Name,
    mode: u16,
    content: Vec<u8>,
    /// A byte of the header to be changed before its checksum is made.
    change: Option<(u16, u8)>,
    with_pax: bool,
    sparse: Option<Sparse>,
}

/// A map of a sparse file; mostly one that is honoured.
#[derive(Arbitrary, Clone, Debug)]
struct Sparse {
    format: SparseFormat,
    /// Bytes between parts, and bytes of parts.
    parts: Vec<(u16, u8)>,
    size: Option<u64>,
    lie: Option<(u8, u64)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum SparseFormat {
    Records,
    Map,
    New,
}

impl Sparse {
    /// Records of a pax header, and the content.
    fn write(&self, name: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut numbers, mut end, mut content) = (Vec::new(), 0, Vec::new());
        for (gap, length) in self.parts.iter().take(60) {
            let (gap, length) = (u64::from(*gap), usize::from(*length));
            numbers.extend([end + gap, length as u64]);
            end += gap + length as u64;
            content.resize(content.len() + length, b'x');
        }
        if let Some((at, value)) = self.lie
            && let Some(number) = numbers.get_mut(usize::from(at))
        {
            *number = value;
        }
        let size = self.size.unwrap_or(end).to_string();
        let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let mut records = match self.format {
            SparseFormat::Records => {
                let keys = ["GNU.sparse.offset", "GNU.sparse.numbytes"]
                    .into_iter()
                    .cycle();
                let pairs = keys.zip(&texts);
                pairs
                    .flat_map(|(key, text)| record(key, text.as_bytes()))
                    .collect()
            }
            SparseFormat::Map => record("GNU.sparse.map", texts.join(",").as_bytes()),
            SparseFormat::New => {
                let mut map = format!("{}\n", texts.len() / 2).into_bytes();
                map.extend(
                    texts
                        .iter()
                        .flat_map(|text| format!("{text}\n").into_bytes()),
                );
                map.resize(map.len().next_multiple_of(512), 0);
                content = [map, content].concat();
                [
                    record("GNU.sparse.major", b"1"),
                    record("GNU.sparse.minor", b"0"),
                ]
                .concat()
            }
        };
        records.extend(record("GNU.sparse.size", size.as_bytes()));
        records.extend(record("GNU.sparse.name", name));
        (records, content)
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    layers: Vec<Vec<Item>>,
    cut: Option<u16>,
}

impl Item {
    fn write(&self, stream: &mut Vec<u8>) {
        let (name, link) = (self.name.bytes(), self.link.bytes());
        if let Some(sparse) = &self.sparse {
            let (records, content) = sparse.write(&name);
            block(stream, b'x', b"pax", b"", 0, &records, None);
            block(
                stream,
                b'0',
                b"sparse",
                b"",
                self.mode,
                &content,
                self.change,
            );
            return;
        }
        if self.with_pax {
            let records = [
                record("path", &name),
                record("linkpath", &link),
                record("SCHILY.xattr.user.x", &self.content),
            ];
            block(stream, b'x', b"pax", b"", 0, &records.concat(), None);
        } else if name.len() > 100 {
            block(stream, b'L', b"long", b"", 0, &name, None);
        }
        let (kind, content): (u8, &[u8]) = match self.kind {
            Kind::File => (b'0', &self.content),
            Kind::OldFile => (0, &self.content),
            // Its map is the tail of a header that is not filled in: one hole.
            Kind::OldSparse => (b'S', &self.content),
            Kind::HardLink => (b'1', b""),
            Kind::Symlink => (b'2', b""),
            Kind::Device => (b'3', b""),
            Kind::Directory => (b'5', b""),
            Kind::Fifo => (b'6', b""),
            Kind::Pax => (b'x', &self.content),
            Kind::Any(kind) => (kind, &self.content),
        };
        block(stream, kind, &name, &link, self.mode, content, self.change);
    }
}

/// The directory that holds the root and, beside it, what nothing may touch.
fn ground() -> &'static Path {
    static GROUND: OnceLock<PathBuf> = OnceLock::new();
    GROUND.get_or_init(|| {
        let ground = std::env::temp_dir().join(format!("oci-layer-{}", std::process::id()));
        fs::create_dir_all(ground.join("outside/a")).expect("a temporary directory can be made");
        fs::write(ground.join("outside/b"), "secret").expect("a temporary file can be written");
        ground
    })
}

fn outside() -> Digest {
    tree_hash(ground().join("outside")).expect("the directory beside the root can be read")
}

fuzz_target!(|input: Input| {
    let root = ground().join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root).expect("the root can be made");
    let before = outside();

    let limits = Limits {
        bytes: 1 << 20,
        entries: 200,
    };
    let options = Options {
        limits,
        ownership: Ownership::Caller,
        ..Options::default()
    };
    let opened = File::open(&root).expect("the root can be opened");
    let mut applier = Applier::new(opened.into(), options);
    let mut is_applied = true;
    for layer in input.layers.iter().take(4) {
        let mut stream = Vec::new();
        for item in layer {
            item.write(&mut stream);
        }
        if let Some(cut) = input.cut {
            stream.truncate(usize::from(cut));
        }
        is_applied = is_applied && applier.layer("fuzz", stream.as_slice()).is_ok();
    }
    let is_finished = applier.finish().is_ok();

    assert!(
        is_finished || !is_applied,
        "what was applied could not be finished"
    );
    assert_eq!(
        outside(),
        before,
        "something outside of the root has changed"
    );
    let beside = fs::read_dir(ground())
        .expect("the directory of the root can be listed")
        .count();
    assert_eq!(beside, 2, "something was made beside the root");
});
