// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cache: what it keeps, what it cleans up, what it never shows. Without privileges.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use common::chain;
use common::image::{GZIP, Layout, gzip};
use common::tar::{dir, file, header};
use coracle_oci::image::{Image, Source};
use coracle_oci::layer::{Limits, Options, Ownership};
use coracle_oci::store::{Rootfs, Store};
use coracle_oci::tree_hash::tree_hash;
use rstest::rstest;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

const OPTIONS: Options = Options {
    limits: Limits {
        bytes: 1 << 20,
        entries: 1000,
    },
    ownership: Ownership::Caller,
    decoders: None,
};

struct Ground {
    directory: tempfile::TempDir,
    source: Source,
    image: Image,
}

impl Ground {
    fn new(layout: &Layout) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::open(layout.write_directory(&directory.path().join("image"))).unwrap();
        let image = source.image(None).unwrap();
        Self {
            directory,
            source,
            image,
        }
    }

    fn store(&self) -> Store {
        Store::open(self.directory.path().join("store")).unwrap()
    }

    fn unpacked(&self) -> Result<Rootfs, String> {
        self.store()
            .unpacked(&self.source, &self.image, OPTIONS, None)
            .map_err(|error| chain(&error))
    }

    fn images(&self) -> std::path::PathBuf {
        self.directory.path().join("store/images")
    }

    fn temporaries(&self) -> usize {
        fs::read_dir(self.images().join("tmp")).unwrap().count()
    }
}

fn layout() -> Layout {
    Layout::with_image(&[&[dir("d").mode(0o750), file("d/f", "x")], &[file("g", "y")]])
}

fn escaping() -> Layout {
    Layout::with_image(&[&[file("fine", "x")], &[file("../escaped", "x")]])
}

#[test]
fn image_is_unpacked_once_and_never_changes() {
    let ground = Ground::new(&layout());

    let first = ground.unpacked().unwrap();
    let before = tree_hash(&first.path).unwrap();
    let second = ground.unpacked().unwrap();

    assert_eq!((first.cached, second.cached), (false, true));
    assert_eq!(second.path, first.path);
    assert_eq!(tree_hash(&second.path).unwrap(), before);
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn tree_is_kept_by_its_chain_id() {
    let ground = Ground::new(&layout());

    let rootfs = ground.unpacked().unwrap();

    let expected = ground
        .images()
        .join("trees/sha256")
        .join(ground.image.chain_id().hex())
        .join("rootfs");
    assert_eq!(rootfs.path, expected);
    assert_eq!(fs::read_to_string(rootfs.path.join("d/f")).unwrap(), "x");
}

#[test]
fn other_users_cannot_enter_the_store() {
    let ground = Ground::new(&layout());
    ground.unpacked().unwrap();

    let mode = fs::metadata(ground.images()).unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn refused_image_leaves_nothing() {
    let ground = Ground::new(&escaping());

    let error = ground.unpacked().unwrap_err();

    assert!(
        error.contains("entry `../escaped` leaves its place"),
        "{error}"
    );
    assert_eq!(ground.temporaries(), 0);
    assert!(!ground.images().join("trees/sha256").exists());
}

#[test]
fn image_over_the_limit_leaves_nothing() {
    let ground = Ground::new(&Layout::with_image(&[&[file("f", vec![0; 2 << 20])]]));

    let error = ground.unpacked().unwrap_err();

    assert!(
        error.contains("unpacks to more than 1048576 bytes"),
        "{error}"
    );
    assert_eq!(ground.temporaries(), 0);
}

/// A tree as a process leaves it that dies while it unpacks.
fn leave_behind(ground: &Ground, name: &str) -> std::path::PathBuf {
    drop(ground.store());
    let stale = ground.images().join("tmp").join(name);
    fs::create_dir_all(stale.join("rootfs/d")).unwrap();
    fs::write(stale.join("rootfs/d/half"), "half").unwrap();
    symlink(
        ground.directory.path().join("image"),
        stale.join("rootfs/link"),
    )
    .unwrap();
    stale
}

#[test]
fn tree_left_by_a_dead_process_is_removed_and_its_symlinks_are_not_followed() {
    let ground = Ground::new(&layout());
    let stale = leave_behind(&ground, "0123abcd");

    drop(ground.store());

    assert!(!stale.exists());
    assert!(ground.directory.path().join("image/index.json").exists());
}

#[test]
fn half_a_tree_is_not_taken_for_the_image() {
    let ground = Ground::new(&layout());
    leave_behind(&ground, ground.image.chain_id().hex());

    let rootfs = ground.unpacked().unwrap();

    assert!(!rootfs.cached);
    assert!(!rootfs.path.join("d/half").exists());
}

#[test]
fn tree_in_the_making_is_left_alone() {
    let ground = Ground::new(&layout());
    let stale = leave_behind(&ground, "0123abcd");
    let lock = File::create(ground.images().join("locks/0123abcd")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();

    drop(ground.store());

    assert!(stale.exists());
}

#[test]
fn image_asked_for_at_once_is_unpacked_once() {
    const ASKING: usize = 8;
    let ground = Ground::new(&layout());
    let barrier = Barrier::new(ASKING);

    let found: Vec<Rootfs> = thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    ground.unpacked().unwrap()
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|asking| asking.join().unwrap())
            .collect()
    });

    assert_eq!(found.iter().filter(|rootfs| !rootfs.cached).count(), 1);
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn store_that_cannot_be_made_is_named() {
    let error = Store::open(Path::new("/proc/nowhere")).unwrap_err();

    assert_eq!(
        error.to_string(),
        "cannot make the directory /proc/nowhere/images"
    );
}

#[rstest]
#[case::the_cache("images")]
#[case::trees_in_the_making("images/tmp")]
fn store_that_others_may_write_to_is_refused(#[case] name: &str) {
    let root = tempfile::tempdir().unwrap();
    Store::open(root.path()).unwrap();
    let directory = root.path().join(name);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();

    let error = Store::open(root.path()).unwrap_err();

    assert_eq!(
        error.to_string(),
        format!(
            "others may write to the directory {} (mode 0777): take that from them (chmod go-w)",
            directory.display()
        )
    );
}

/// The header of a file `f` of `size` bytes.
fn header_of(size: u64) -> [u8; 512] {
    let mut block = header(&file("f", ""));
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Each of its bytes is in the layer's stream, none in a map of holes.
#[test]
#[ignore = "takes minutes unless it is optimised: make test-large"]
fn plain_file_of_five_gibibytes_is_whole() {
    const PIECE: usize = 64 << 20;
    const PIECES: u64 = 80;
    const SIZE: u64 = PIECES * PIECE as u64;
    let marked = |number: u64| [0, 63, 64, PIECES - 1].contains(&number);
    let (zeros, mut letters) = (vec![0; PIECE], vec![0; PIECE]);
    letters[0] = b'a';
    letters[PIECE - 1] = b'z';
    // A file of gzip may have several members, one after the other.
    let members = [&zeros, &letters].map(|piece| gzip(piece));
    let (first, last) = (header_of(SIZE), [0; 1024]);
    let (mut stream, mut blob) = (Sha256::new_with_prefix(first), gzip(&first));
    for number in 0..PIECES {
        let is_marked = marked(number);
        stream.update(if is_marked { &letters } else { &zeros });
        blob.extend_from_slice(&members[usize::from(is_marked)]);
    }
    stream.update(last);
    blob.extend_from_slice(&gzip(&last));
    let mut layout = Layout::new();
    let layer = layout.blob(GZIP, &blob);
    let digits: String = stream
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let manifest = layout.manifest("amd64", &[layer], &[format!("sha256:{digits}")]);
    layout.add(manifest);
    let ground = Ground::new(&layout);

    let options = Options {
        limits: Limits::default(),
        ..OPTIONS
    };
    let rootfs = ground
        .store()
        .unpacked(&ground.source, &ground.image, options, None)
        .unwrap();

    let file = File::open(rootfs.path.join("f")).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), SIZE);
    assert!(metadata.blocks() * 512 < 16 << 20, "zeros are holes");
    for number in 0..PIECES {
        let expected: [&[u8]; 2] = match marked(number) {
            true => [b"a", b"z"],
            false => [&[0], &[0]],
        };
        let start = number * PIECE as u64;
        for (byte, at) in expected.iter().zip([start, start + PIECE as u64 - 1]) {
            let mut found = [0];
            file.read_exact_at(&mut found, at).unwrap();
            assert_eq!(&found, *byte, "at {at}");
        }
    }
}
