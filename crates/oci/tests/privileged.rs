// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What only root can have unpacked: owners, device nodes, file capabilities, full disks; and what
//! not all file systems keep. Without root, or support, these tests are reported as ignored.

mod common;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::image::Layout;
use common::tar::{Item, block, character, dir, fifo, file, hard, symlink, tar};
use common::{chain, is_root, listing};
use coracle_oci::image::{Name, Source};
use coracle_oci::layer::{Applier, Options};
use coracle_oci::store::{Found, Store};
use coracle_oci::unpack::unpack;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::fs::{lgetxattr, llistxattr, makedev};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() {
    let tests: [Test; 14] = [
        (
            "closed_directories_are_filled",
            closed_directories_are_filled,
        ),
        ("owners_are_the_entries", owners_are_the_entries),
        (
            "set_user_id_survives_the_change_of_owner",
            set_user_id_survives_the_change_of_owner,
        ),
        ("device_nodes_are_made", device_nodes_are_made),
        (
            "file_capabilities_are_set_after_the_owner",
            file_capabilities_are_set_after_the_owner,
        ),
        (
            "default_acl_has_no_effect_on_what_layers_make",
            default_acl_has_no_effect_on_what_layers_make,
        ),
        ("umask_has_no_effect", umask_has_no_effect),
        (
            "device_in_place_of_a_user_database_is_not_opened",
            device_in_place_of_a_user_database_is_not_opened,
        ),
        (
            "full_disk_is_reported_and_leaves_nothing",
            full_disk_is_reported_and_leaves_nothing,
        ),
        (
            "image_is_removed_from_a_full_disk",
            image_is_removed_from_a_full_disk,
        ),
        (
            "image_is_removed_from_a_full_disk_without_room_set_aside",
            image_is_removed_from_a_full_disk_without_room_set_aside,
        ),
        (
            "image_of_many_layers_takes_few_descriptors",
            image_of_many_layers_takes_few_descriptors,
        ),
        (
            "full_disk_in_a_later_layer_leaves_nothing",
            full_disk_in_a_later_layer_leaves_nothing,
        ),
        (
            "full_disk_while_an_image_is_added_leaves_nothing",
            full_disk_while_an_image_is_added_leaves_nothing,
        ),
    ];
    let of_users: [Test; 3] = [
        ("attributes_of_users_are_set", attributes_of_users_are_set),
        (
            "directory_loses_the_attributes_of_lower_layers",
            directory_loses_the_attributes_of_lower_layers,
        ),
        (
            "attributes_that_steer_an_overlay_are_left_out",
            attributes_that_steer_an_overlay_are_left_out,
        ),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, test)
            .with_kind("root")
            .with_ignored_flag(!is_root())
    });
    let can_keep = is_root() && keeps_attributes_of_users();
    let of_users = of_users.into_iter().map(|(name, test)| {
        Trial::test(name, test)
            .with_kind("root, user.* attributes")
            .with_ignored_flag(!can_keep)
    });
    // One by one: the mask for new files is the whole process's.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials.chain(of_users).collect()).exit();
}

fn applied(layers: &[&[Item]]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut applier = Applier::new(File::open(root.path()).unwrap().into(), Options::default());
    for layer in layers {
        applier.layer("L", tar(layer).as_slice()).unwrap();
    }
    applier.finish().unwrap();
    root
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

fn owners_are_the_entries() -> Result<(), Failed> {
    let root = applied(&[&[
        dir("./").owner(7, 8),
        dir("d").owner(1, 2),
        file("d/f", "").owner(65_534, 65_533),
        symlink("d/s", "/nowhere").owner(3, 4),
        fifo("d/p").owner(5, 6),
        file("d/large", "")
            .pax("uid", "4294967294")
            .pax("gid", "2100000"),
        file("implied/f", "").owner(9, 9),
    ]]);

    let owners = [".", "d", "d/f", "d/s", "d/p", "d/large", "implied"]
        .map(|name| owner(&root.path().join(name)));

    let expected = [
        (7, 8),
        (1, 2),
        (65_534, 65_533),
        (3, 4),
        (5, 6),
        (4_294_967_294, 2_100_000),
        (0, 0),
    ];
    assert_eq!(owners, expected);
    Ok(())
}

fn set_user_id_survives_the_change_of_owner() -> Result<(), Failed> {
    let root = applied(&[&[
        file("suid", "").mode(0o4755).owner(1000, 1000),
        file("sgid", "").mode(0o2755).owner(1000, 1000),
        dir("mail").mode(0o3777).owner(0, 8),
        file("mail/f", "").mode(0o600).owner(1000, 1000),
        dir("mail/d").owner(1000, 1000),
    ]]);

    let expected = [
        "mail dir 3777",
        "mail/d dir 755",
        "mail/f file 600 ",
        "sgid file 2755 ",
        "suid file 4755 ",
    ];
    assert_eq!(listing(root.path()), expected);
    assert_eq!(owner(&root.path().join("mail/d")), (1000, 1000));
    Ok(())
}

fn device_nodes_are_made() -> Result<(), Failed> {
    let root = applied(&[&[
        character("null", 1, 3).mode(0o666),
        block("disk", 259, 1_000_000).mode(0o660),
        hard("zero", "null"),
    ]]);

    let (null, disk) = (makedev(1, 3), makedev(259, 1_000_000));
    let expected = [
        format!("disk device 660 {disk}"),
        format!("null device 666 {null}"),
        format!("zero device 666 {null}"),
    ];
    assert_eq!(listing(root.path()), expected);
    Ok(())
}

/// CAP_NET_RAW, effective, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn file_capabilities_are_set_after_the_owner() -> Result<(), Failed> {
    let root = applied(&[&[file("ping", "x")
        .mode(0o755)
        .owner(10, 10)
        .pax("SCHILY.xattr.security.capability", CAPABILITY)]]);

    let mut value = [0; 64];
    let length = lgetxattr(
        root.path().join("ping"),
        "security.capability",
        &mut value[..],
    )?;

    assert_eq!(value[..length], CAPABILITY);
    Ok(())
}

/// user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::r-x
const ACL: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 7, 0, 255, 255, 255, 255, //
    2, 0, 7, 0, 0xe8, 3, 0, 0, //
    4, 0, 5, 0, 255, 255, 255, 255, //
    16, 0, 7, 0, 255, 255, 255, 255, //
    32, 0, 5, 0, 255, 255, 255, 255,
];

fn default_acl_has_no_effect_on_what_layers_make() -> Result<(), Failed> {
    let root = applied(&[
        &[
            dir("journal").pax("SCHILY.xattr.system.posix_acl_default", ACL),
            file("journal/f", "").mode(0o640),
        ],
        &[file("journal/g", "").mode(0o600)],
    ]);

    let mut value = [0; 64];
    let length = lgetxattr(
        root.path().join("journal"),
        "system.posix_acl_default",
        &mut value[..],
    )?;
    assert_eq!(value[..length], ACL);
    assert_eq!(
        listing(root.path()),
        [
            "journal dir 755",
            "journal/f file 640 ",
            "journal/g file 600 "
        ]
    );
    for name in ["journal/f", "journal/g"] {
        let found = lgetxattr(
            root.path().join(name),
            "system.posix_acl_access",
            &mut value[..],
        );
        assert_eq!(found, Err(rustix::io::Errno::NODATA));
    }
    Ok(())
}

fn umask_has_no_effect() -> Result<(), Failed> {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let root = applied(&[&[
        file("a/f", "").mode(0o666),
        fifo("p").mode(0o666),
        character("c", 1, 3).mode(0o666),
    ]]);
    rustix::process::umask(before);

    let expected = [
        "a dir 755".to_owned(),
        "a/f file 666 ".to_owned(),
        format!("c device 666 {}", makedev(1, 3)),
        "p fifo 666".to_owned(),
    ];
    assert_eq!(listing(root.path()), expected);
    Ok(())
}

fn device_in_place_of_a_user_database_is_not_opened() -> Result<(), Failed> {
    // /dev/zero: reading it would never end.
    let root = applied(&[&[character("etc/passwd", 1, 5)]]);

    let error = coracle_oci::user::resolve(File::open(root.path())?, "root").unwrap_err();

    assert_eq!(
        chain(&error),
        "/etc/passwd of the image cannot be read: not a regular file"
    );
    Ok(())
}

/// A small file system, unmounted in the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> rustix::io::Result<Self> {
        let directory = tempfile::tempdir().unwrap();
        mount(
            "small",
            directory.path(),
            "tmpfs",
            MountFlags::empty(),
            c"size=1m",
        )?;
        Ok(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

fn full_disk_is_reported_and_leaves_nothing() -> Result<(), Failed> {
    let disk = SmallDisk::new()?;
    let place = tempfile::tempdir()?;
    let layout = Layout::with_image(&[&[file("f", vec![1; 4 << 20])]]);
    let source = Source::open(layout.write_directory(&place.path().join("image")))?;
    let image = source.image(None)?;
    let store = Store::open(disk.0.path())?;

    let error = store
        .unpacked(&source, &image, Options::default(), None)
        .unwrap_err();

    let text = chain(&error);
    assert!(
        text.contains("cannot write entry `f`: No space left on device"),
        "{text}"
    );
    assert_eq!(fs::read_dir(disk.0.path().join("images/tmp"))?.count(), 0);
    assert!(!disk.0.path().join("images/trees/sha256").exists());
    Ok(())
}

/// A store on a small disk, with an image of that name.
fn store_with_image(disk: &SmallDisk, name: &Name) -> Result<Store, Failed> {
    let place = tempfile::tempdir()?;
    let layout = Layout::with_image(&[&[file("f", "content")]]);
    let source = Source::open(layout.write_directory(place.path()))?;
    let store = Store::open(disk.0.path())?;
    store.add(name, &source, None, None)?;
    Ok(store)
}

/// Writes what fits.
fn fill(disk: &SmallDisk) -> Result<(), Failed> {
    let filled = fs::write(disk.0.path().join("filler"), vec![1; 2 << 20]);
    assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::StorageFull);
    Ok(())
}

fn image_is_removed_from_a_full_disk() -> Result<(), Failed> {
    let disk = SmallDisk::new()?;
    let name: Name = "one".parse()?;
    let store = store_with_image(&disk, &name)?;
    let stored = store.find(&name)?.ok_or("it is not there")?.stored;
    fill(&disk)?;

    let removed = store.remove(&stored, &|_| false)?;

    assert_eq!(removed.blobs, 3);
    assert!(store.images()?.is_empty());
    Ok(())
}

/// As a store of an earlier version, or one whose disk had no room for more than the index.
fn image_is_removed_from_a_full_disk_without_room_set_aside() -> Result<(), Failed> {
    let disk = SmallDisk::new()?;
    let name: Name = "one".parse()?;
    let store = store_with_image(&disk, &name)?;
    let found = store.find(&name)?.ok_or("it is not there")?;
    let image = found.stored.image.as_ref().map_err(ToString::to_string)?;
    drop(store.unpacked(&found.source, image, Options::default(), None)?);
    let Found { stored, lease, .. } = found;
    drop(lease);
    fs::remove_file(disk.0.path().join("images/index.new"))?;
    fill(&disk)?;

    let removed = store.remove(&stored, &|_| false)?;

    assert_eq!(
        (removed.blobs, removed.trees, removed.kept_trees),
        (3, 1, 0)
    );
    assert!(store.images()?.is_empty());
    Ok(())
}

fn image_of_many_layers_takes_few_descriptors() -> Result<(), Failed> {
    let layers: Vec<Vec<Item>> = (0..200)
        .map(|number| vec![file(format!("{number}"), "")])
        .collect();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let place = tempfile::tempdir()?;
    let source = Source::open(Layout::with_image(&layers).write_directory(place.path()))?;
    let image = source.image(None)?;
    let before = getrlimit(Resource::Nofile);
    // What the process has already may be any number.
    let next = u64::try_from(File::open("/")?.as_raw_fd())?;
    let few = Rlimit {
        current: Some(next + 40),
        ..before
    };

    setrlimit(Resource::Nofile, few)?;
    let outcomes = [Some(0), Some(4)].map(|decoders| {
        let root = tempfile::tempdir()?;
        let options = Options {
            decoders,
            ..Options::default()
        };
        let handle = File::open(root.path())?.into();
        unpack(&source, &image, handle, options, None).map_err(|error| chain(&error))?;
        Ok::<_, Failed>(listing(root.path()).len())
    });
    setrlimit(Resource::Nofile, before)?;

    for outcome in outcomes {
        assert_eq!(outcome?, 200);
    }
    Ok(())
}

fn full_disk_in_a_later_layer_leaves_nothing() -> Result<(), Failed> {
    let disk = SmallDisk::new()?;
    let place = tempfile::tempdir()?;
    let fits = vec![1; 100 << 10];
    let layers: Vec<Vec<Item>> = (0..20)
        .map(|number| vec![file(format!("{number}"), &fits)])
        .collect();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let source = Source::open(Layout::with_image(&layers).write_directory(place.path()))?;
    let image = source.image(None)?;
    let store = Store::open(disk.0.path())?;

    for decoders in [0, 1, 4] {
        let options = Options {
            decoders: Some(decoders),
            ..Options::default()
        };
        let error = store.unpacked(&source, &image, options, None).unwrap_err();

        assert!(chain(&error).contains("No space left on device"));
        assert_eq!(fs::read_dir(disk.0.path().join("images/tmp"))?.count(), 0);
        assert!(!disk.0.path().join("images/trees/sha256").exists());
    }
    Ok(())
}

fn full_disk_while_an_image_is_added_leaves_nothing() -> Result<(), Failed> {
    let disk = SmallDisk::new()?;
    let place = tempfile::tempdir()?;
    let mut layout = Layout::new();
    let stream = tar(&[file("f", vec![1; 4 << 20])]);
    let layer = layout.blob(common::image::TAR, &stream);
    let diff_id = layer["digest"].as_str().unwrap_or_default().to_owned();
    let manifest = layout.manifest("amd64", &[layer], &[diff_id]);
    layout.add(manifest);
    let source = Source::open(layout.write_directory(place.path()))?;
    let store = Store::open(disk.0.path())?;

    let error = store
        .add(&"tool".parse()?, &source, None, None)
        .unwrap_err();
    let pruned = store.prune(&|_| false)?;

    let text = chain(&error);
    assert!(text.starts_with("image store: cannot write "), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(fs::read_dir(disk.0.path().join("images/tmp"))?.count(), 0);
    assert!(store.images()?.is_empty());
    // Manifest and config came before the layer.
    assert_eq!(pruned.blobs, 2);
    Ok(())
}

fn closed_directories_are_filled() -> Result<(), Failed> {
    let root = applied(&[&[dir("closed").mode(0), file("closed/f", "").mode(0)]]);

    assert_eq!(listing(root.path()), ["closed dir 0", "closed/f file 0 "]);
    Ok(())
}

/// Whether temporary files can have attributes of users: tmpfs cannot keep them before Linux 6.6.
fn keeps_attributes_of_users() -> bool {
    let Ok(file) = tempfile::tempfile() else {
        return false;
    };
    rustix::fs::fsetxattr(&file, "user.test", b"", rustix::fs::XattrFlags::empty()).is_ok()
}

/// Names of attributes but those that a host's security module adds.
fn attribute_names(path: &Path) -> rustix::io::Result<Vec<String>> {
    let mut names = [0; 1024];
    let length = llistxattr(path, &mut names[..])?;
    let names = names[..length]
        .split(|byte| *byte == 0)
        .map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(names
        .filter(|name| !name.is_empty() && !name.starts_with("security."))
        .collect())
}

fn attributes_of_users_are_set() -> Result<(), Failed> {
    let root = applied(&[&[
        file("f", "").pax("SCHILY.xattr.user.test", "a\nb\0c"),
        dir("d").pax("SCHILY.xattr.user.test", "d"),
    ]]);

    let value = |name: &str| {
        let mut value = [0; 64];
        lgetxattr(root.path().join(name), "user.test", &mut value[..])
            .map(|length| value[..length].to_vec())
    };
    assert_eq!(
        (value("f")?, value("d")?),
        (b"a\nb\0c".to_vec(), b"d".to_vec())
    );
    Ok(())
}

fn directory_loses_the_attributes_of_lower_layers() -> Result<(), Failed> {
    let root = applied(&[
        &[dir("d").pax("SCHILY.xattr.user.old", "1")],
        &[dir("d").pax("SCHILY.xattr.user.new", "2")],
    ]);

    assert_eq!(attribute_names(&root.path().join("d"))?, ["user.new"]);
    Ok(())
}

fn attributes_that_steer_an_overlay_are_left_out() -> Result<(), Failed> {
    let root = applied(&[&[file("f", "")
        .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")
        .pax("SCHILY.xattr.user.overlay.opaque", "y")
        .pax("SCHILY.xattr.user.kept", "y")]]);

    assert_eq!(attribute_names(&root.path().join("f"))?, ["user.kept"]);
    Ok(())
}
