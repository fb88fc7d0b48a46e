// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies between the host and a directory that stands for a container's root.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rstest::rstest;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use tempfile::TempDir;

use super::archive::{Archive, extract};
use super::entry::Attributes;
use super::*;

/// A container's root and the host's directory beside it.
struct Sides {
    place: TempDir,
    root: Root,
}

impl Sides {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        fs::create_dir(place.path().join("host")).unwrap();
        let root = File::open(place.path().join("root")).unwrap();
        Self {
            place,
            root: Root::Container(root.into()),
        }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.place.path().join("root").join(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.place.path().join("host").join(path)
    }

    fn copy(&self, from: &str, to: &str, ownership: Ownership) -> Result<()> {
        let copy = Copy::parse(OsStr::new(from), OsStr::new(to)).unwrap();
        let outside = copy.outside.unwrap();
        match copy.direction {
            Direction::Out => transfer(
                &Source::find(&self.root, &copy.inside)?,
                Destination::find(&Root::Host, &outside)?,
                ownership,
            ),
            Direction::In => transfer(
                &Source::find(&Root::Host, &outside)?,
                Destination::find(&self.root, &copy.inside)?,
                ownership,
            ),
        }
    }

    fn take_out(&self, from: &str, to: &str) -> Result<()> {
        let to = self.outside(to);
        self.copy(&format!("c:{from}"), to.to_str().unwrap(), Ownership::Ours)
    }

    fn put_in(&self, from: &str, to: &str) -> Result<()> {
        let from = self.outside(from);
        self.copy(from.to_str().unwrap(), &format!("c:{to}"), Ownership::Ours)
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn refusal(outcome: Result<()>) -> String {
    format!("{:#}", outcome.unwrap_err())
}

#[rstest]
#[case::ours(Ownership::Ours, 0o1755, 0)]
#[case::kept(Ownership::Kept, 0o7755, 1000)]
fn attributes_are_kept(#[case] ownership: Ownership, #[case] mode: u32, #[case] owner: u32) {
    let sides = Sides::new();
    let file = sides.inside("file");
    fs::write(&file, "text").unwrap();
    chown(&file, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o7755)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_000_007);
    File::open(&file).unwrap().set_modified(time).unwrap();

    let to = sides.outside("copy");
    sides
        .copy("c:/file", to.to_str().unwrap(), ownership)
        .unwrap();

    let found = fs::metadata(to).unwrap();
    assert_eq!(found.mode() & 0o7777, mode);
    assert_eq!((found.uid(), found.gid()), (owner, owner));
    assert_eq!(found.modified().unwrap(), time);
}

#[test]
fn tree_is_copied_with_its_links_and_without_its_devices() {
    let sides = Sides::new();
    fs::create_dir_all(sides.inside("tree/below")).unwrap();
    fs::write(sides.inside("tree/below/file"), "text").unwrap();
    symlink("/etc/passwd", sides.inside("tree/link")).unwrap();
    for kind in [FileType::Fifo, FileType::Socket] {
        let name = sides.inside("tree").join(format!("{kind:?}"));
        mknodat(CWD, name, kind, Mode::RUSR, 0).unwrap();
    }
    fs::set_permissions(sides.inside("tree/below"), Permissions::from_mode(0o500)).unwrap();

    sides.take_out("/tree", "copy").unwrap();

    assert_eq!(text(sides.outside("copy/below/file")), "text");
    let link = fs::read_link(sides.outside("copy/link")).unwrap();
    assert_eq!(link, Path::new("/etc/passwd"));
    let below = fs::metadata(sides.outside("copy/below")).unwrap();
    assert_eq!(below.mode() & 0o7777, 0o500);
    assert_eq!(fs::read_dir(sides.outside("copy")).unwrap().count(), 2);
}

#[test]
fn content_goes_into_the_directory_that_is_there() {
    let sides = Sides::new();
    fs::create_dir(sides.inside("tree")).unwrap();
    fs::write(sides.inside("tree/new"), "new").unwrap();
    fs::write(sides.inside("tree/both"), "new").unwrap();
    fs::write(sides.outside("old"), "old").unwrap();
    fs::write(sides.outside("both"), "old").unwrap();

    sides.take_out("/tree/.", "").unwrap();
    sides.take_out("/tree", ".").unwrap();

    let found = ["new", "old", "both", "tree/new"].map(|name| text(sides.outside(name)));
    assert_eq!(found, ["new", "old", "new", "new"]);
}

#[rstest]
#[case::fifo(FileType::Fifo)]
#[case::socket(FileType::Socket)]
fn special_file_is_not_opened(#[case] kind: FileType) {
    let sides = Sides::new();
    mknodat(CWD, sides.inside("special"), kind, Mode::RUSR, 0).unwrap();

    let error = refusal(sides.take_out("/special", "copy"));

    assert!(error.ends_with("which is not copied"), "{error}");
    assert!(!sides.outside("copy").exists());
}

#[test]
fn links_of_the_container_lead_nowhere_else() {
    let sides = Sides::new();
    fs::create_dir_all(sides.inside("etc")).unwrap();
    fs::write(sides.inside("etc/hostname"), "inside").unwrap();
    symlink("/etc", sides.inside("absolute")).unwrap();
    symlink("../../../../../../../etc", sides.inside("relative")).unwrap();

    sides.take_out("/absolute/hostname", "one").unwrap();
    sides.take_out("relative/hostname", "two").unwrap();
    sides.take_out("/../../etc/hostname", "three").unwrap();

    for copy in ["one", "two", "three"] {
        assert_eq!(text(sides.outside(copy)), "inside");
    }
}

#[test]
fn what_is_written_stays_inside() {
    let sides = Sides::new();
    fs::write(sides.outside("file"), "new").unwrap();
    fs::write(sides.outside("victim"), "old").unwrap();
    let host = sides.outside("").canonicalize().unwrap();
    symlink(&host, sides.inside("directory")).unwrap();
    symlink(host.join("victim"), sides.inside("link")).unwrap();

    let below = refusal(sides.put_in("file", "/directory/file2"));
    sides.put_in("file", "/link").unwrap();

    assert!(
        below.contains("there is no directory /directory/"),
        "{below}"
    );
    assert_eq!(text(sides.outside("victim")), "old");
    assert_eq!(text(sides.inside("link")), "new", "it replaces the link");
    assert!(!sides.outside("file2").exists());
}

#[test]
fn links_below_the_destination_are_not_followed() {
    let sides = Sides::new();
    fs::create_dir_all(sides.outside("tree/directory")).unwrap();
    fs::write(sides.outside("tree/file"), "new").unwrap();
    fs::write(sides.outside("victim"), "old").unwrap();
    fs::create_dir(sides.inside("tree")).unwrap();
    symlink(sides.outside("victim"), sides.inside("tree/file")).unwrap();

    sides.put_in("tree", "/").unwrap();
    assert_eq!(text(sides.inside("tree/file")), "new");
    assert_eq!(text(sides.outside("victim")), "old");

    fs::remove_dir(sides.inside("tree/directory")).unwrap();
    symlink(sides.outside(""), sides.inside("tree/directory")).unwrap();
    let error = refusal(sides.put_in("tree", "/"));
    assert!(
        error.contains("something that is not a directory has its name"),
        "{error}"
    );
}

#[test]
fn file_that_is_there_is_written_to() {
    let sides = Sides::new();
    fs::write(sides.inside("file"), "longer than before").unwrap();
    fs::hard_link(sides.inside("file"), sides.inside("same")).unwrap();
    symlink("file", sides.inside("link")).unwrap();
    fs::write(sides.outside("new"), "new").unwrap();

    sides.put_in("new", "/link").unwrap();

    // As what is mounted on has to be: it cannot be replaced.
    assert_eq!(text(sides.inside("same")), "new");
    assert!(
        fs::symlink_metadata(sides.inside("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn holes_stay_holes() {
    let sides = Sides::new();
    let file = File::create(sides.inside("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 512 << 20).unwrap();

    sides.take_out("/sparse", "copy").unwrap();

    let copy = fs::metadata(sides.outside("copy")).unwrap();
    assert_eq!(copy.len(), 1 << 30);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let mut found = [0; 3];
    let copy = File::open(sides.outside("copy")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut found, 512 << 20).unwrap();
    assert_eq!(&found, b"end");
}

#[test]
fn depth_is_bounded() {
    let sides = Sides::new();
    let deep = "d/".repeat(500);
    fs::create_dir_all(sides.inside(&deep)).unwrap();

    let error = refusal(sides.take_out("/d", "copy"));

    assert!(
        error.contains("more than 400 directories are in each other"),
        "{error}"
    );
}

#[rstest]
#[case::same("/tree", "tree")]
#[case::content("/tree/.", "tree")]
#[case::below("/tree", "tree/below")]
fn directory_is_not_copied_into_itself(#[case] from: &str, #[case] to: &str) {
    let sides = Sides::new();
    fs::create_dir_all(sides.inside("tree/below")).unwrap();
    let to = sides.inside(to);

    let error = refusal(sides.copy(&format!("c:{from}"), to.to_str().unwrap(), Ownership::Ours));

    assert!(
        error.contains("a directory cannot be copied into itself"),
        "{error}"
    );
}

#[rstest]
#[case::source("/nothing", "copy", "there is no /nothing")]
#[case::file_as_a_directory("/file/", "copy", "/file/")]
#[case::no_directory_above("/file", "nothing/copy", "there is no directory")]
#[case::no_directory("/file", "nothing/", "there is no directory")]
fn copy_of_nothing_or_to_nowhere_is_refused(
    #[case] from: &str,
    #[case] to: &str,
    #[case] expected: &str,
) {
    let sides = Sides::new();
    fs::write(sides.inside("file"), "text").unwrap();

    let error = refusal(sides.take_out(from, to));

    assert!(error.contains(expected), "{error}");
    assert_eq!(fs::read_dir(sides.outside("")).unwrap().count(), 0);
}

/// Exchanges two names, as fast as it goes, while `act` runs.
fn while_swapping<T>(one: &Path, other: &Path, act: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let outcome = act();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

#[test]
fn nothing_of_the_host_is_read_while_names_are_swapped() {
    let sides = Sides::new();
    let secret = sides.place.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "secret").unwrap();
    fs::create_dir_all(sides.inside("tree/directory")).unwrap();
    fs::write(sides.inside("tree/directory/file"), "inside").unwrap();
    let link = sides.inside("tree/link");
    symlink(&secret, &link).unwrap();

    let mut read = 0;
    while_swapping(&sides.inside("tree/directory"), &link, || {
        for number in 0..1000 {
            read += u32::from(sides.take_out("/tree", &format!("tree{number}")).is_ok());
            let _ = sides.take_out("/tree/directory/file", &format!("file{number}"));
        }
    });

    assert!(read > 0);
    let found = contents(&sides.outside(""));
    assert!(!found.is_empty());
    assert!(found.iter().all(|content| content == "inside"));
}

/// What is in all files below a directory, behind no link.
fn contents(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let read = |entry: fs::DirEntry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => contents(&entry.path()),
        kind if kind.is_file() => vec![text(entry.path())],
        _ => Vec::new(),
    };
    entries.flat_map(read).collect()
}

#[test]
fn nothing_of_the_host_is_written_while_names_are_swapped() {
    let sides = Sides::new();
    let victim = sides.place.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::create_dir_all(sides.outside("tree/directory")).unwrap();
    fs::write(sides.outside("tree/directory/file"), "new").unwrap();
    fs::create_dir_all(sides.inside("tree/directory")).unwrap();
    let link = sides.inside("tree/link");
    symlink(&victim, &link).unwrap();

    let mut written = 0;
    while_swapping(&sides.inside("tree/directory"), &link, || {
        for _ in 0..1000 {
            written += u32::from(sides.put_in("tree", "/").is_ok());
            let _ = sides.put_in("tree/directory/file", "/tree/directory/other");
        }
    });

    assert!(written > 0);
    assert_eq!(fs::read_dir(victim).unwrap().count(), 0);
}

fn archive(sides: &Sides, path: &str) -> Vec<u8> {
    let copy = Copy::parse(OsStr::new(&format!("c:{path}")), OsStr::new("-")).unwrap();
    let source = Source::find(&sides.root, &copy.inside).unwrap();
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes, Ownership::Kept);
    walk(&source.entry, source.name(), None, &mut archive).unwrap();
    archive.finish().unwrap();
    bytes
}

#[rstest]
#[case::ours(Ownership::Ours, 0o755, 0)]
#[case::kept(Ownership::Kept, 0o4755, 1000)]
fn archive_keeps_owners_only_if_asked_to(
    #[case] ownership: Ownership,
    #[case] mode: u32,
    #[case] owner: u64,
) {
    let sides = Sides::new();
    let file = sides.inside("file");
    fs::write(&file, "text").unwrap();
    chown(&file, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o4755)).unwrap();
    let entry = sides.root.find(Path::new("/file"), false).unwrap().unwrap();
    let mut bytes = Vec::new();

    let mut archive = Archive::new(&mut bytes, ownership);
    walk(&entry, Some(OsStr::new("file")), None, &mut archive).unwrap();
    archive.finish().unwrap();

    let mut archive = tar::Archive::new(&bytes[..]);
    let found = archive.entries().unwrap().next().unwrap().unwrap();
    let header = found.header();
    assert_eq!(header.mode().unwrap(), mode);
    assert_eq!(
        (header.uid().unwrap(), header.gid().unwrap()),
        (owner, owner)
    );
}

#[test]
fn archive_holds_what_is_copied() {
    let sides = Sides::new();
    let long = "long".repeat(50);
    fs::create_dir_all(sides.inside("tree").join(&long)).unwrap();
    fs::write(sides.inside("tree").join(&long).join("file"), "text").unwrap();
    symlink(format!("/{long}"), sides.inside("tree/link")).unwrap();
    fs::set_permissions(sides.inside("tree"), Permissions::from_mode(0o700)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    File::open(sides.inside("tree"))
        .unwrap()
        .set_modified(time)
        .unwrap();

    let bytes = archive(&sides, "/tree");
    fs::create_dir(sides.inside("other")).unwrap();
    extract(
        &bytes[..],
        &sides.root,
        Path::new("/other"),
        Ownership::Kept,
        None,
    )
    .unwrap();

    let other = sides.inside("other/tree");
    assert_eq!(text(other.join(&long).join("file")), "text");
    let link = fs::read_link(other.join("link")).unwrap();
    assert_eq!(link, PathBuf::from(format!("/{long}")));
    let found = fs::metadata(&other).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o700);
    assert_eq!(found.modified().unwrap(), time);
}

fn archive_of(kind: tar::EntryType, name: &[u8], target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    if !target.is_empty() {
        header.set_link_name_literal(target).unwrap();
    }
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    builder.into_inner().unwrap()
}

#[rstest]
#[case::upwards(
    archive_of(tar::EntryType::Regular, b"../file", ""),
    "it leads upwards"
)]
#[case::upwards_below(
    archive_of(tar::EntryType::Regular, b"a/../../file", ""),
    "it leads upwards"
)]
#[case::hard_link(
    archive_of(tar::EntryType::Link, b"file", "../victim"),
    "it leads upwards"
)]
#[case::no_archive(vec![7; 1024], "cannot read the archive")]
#[case::cut(archive_of(tar::EntryType::Regular, b"file", "")[..100].to_vec(), "cannot read the archive")]
fn bad_archive_is_refused(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    let sides = Sides::new();
    fs::create_dir(sides.inside("base")).unwrap();
    fs::write(sides.inside("victim"), "").unwrap();

    let error = refusal(extract(
        &bytes[..],
        &sides.root,
        Path::new("/base"),
        Ownership::Ours,
        None,
    ));

    assert!(error.contains(expected), "{error}");
    assert_eq!(fs::read_dir(sides.inside("base")).unwrap().count(), 0);
}

#[test]
fn archive_stays_inside_whatever_links_are_there() {
    let sides = Sides::new();
    symlink(sides.outside(""), sides.inside("link")).unwrap();

    let bytes = archive_of(tar::EntryType::Regular, b"link/file", "");
    let _ = extract(
        &bytes[..],
        &sides.root,
        Path::new("/"),
        Ownership::Ours,
        None,
    );

    assert_eq!(fs::read_dir(sides.outside("")).unwrap().count(), 0);
}

#[test]
fn file_that_becomes_shorter_fills_its_place_in_the_archive() {
    let sides = Sides::new();
    fs::write(sides.inside("file"), "text").unwrap();
    let entry = sides.root.find(Path::new("/file"), false).unwrap().unwrap();
    File::create(sides.inside("file")).unwrap();

    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes, Ownership::Kept);
    walk(&entry, Some(OsStr::new("file")), None, &mut archive).unwrap();
    archive.finish().unwrap();

    let mut found = tar::Archive::new(&bytes[..]);
    let entry = found.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.size(), 4);
}

#[test]
fn holes_without_end_are_no_archives() {
    let sides = Sides::new();
    fs::create_dir(sides.inside("tree")).unwrap();
    for name in ["a", "b", "c"] {
        let file = File::create(sides.inside("tree").join(name)).unwrap();
        file.set_len(3 << 20).unwrap();
    }
    let entry = sides.root.find(Path::new("/tree"), false).unwrap().unwrap();

    let mut archive = Archive::new(io::sink(), Ownership::Kept);
    archive.holes = 8 << 20;
    let refused = refusal(walk(&entry, Some(OsStr::new("tree")), None, &mut archive));

    assert!(refused.contains("of holes"), "{refused}");
}

#[test]
fn file_that_fits_nowhere_is_told_before_it_is_written() {
    let sides = Sides::new();
    fs::write(sides.inside("file"), "text").unwrap();
    let from = File::open(sides.inside("file")).unwrap();
    let to = File::create(sides.outside("file")).unwrap();

    let refused = refusal(files::copy(&from, &to, u64::MAX >> 1));

    assert!(refused.contains("too large"), "{refused}");
    assert_eq!(to.metadata().unwrap().len(), 0);
}

#[test]
fn file_that_took_the_name_of_a_link_does_not_become_the_guests() {
    let sides = Sides::new();
    let host = File::open(sides.outside("")).unwrap();
    fs::write(sides.outside("roots"), "text").unwrap();
    let attributes = Attributes {
        mode: 0o777,
        uid: 1000,
        gid: 1000,
        size: 0,
        modified: (1, 0),
        identity: (0, 0),
    };

    let link = files::put_link(host.as_fd(), OsStr::new("link"), OsStr::new("target")).unwrap();
    fs::rename(sides.outside("link"), sides.outside("moved")).unwrap();
    fs::hard_link(sides.outside("roots"), sides.outside("link")).unwrap();
    Ownership::Kept.apply_to_link(link, &attributes).unwrap();

    assert_eq!(fs::metadata(sides.outside("roots")).unwrap().uid(), 0);
    let moved = fs::symlink_metadata(sides.outside("moved")).unwrap();
    assert_eq!((moved.uid(), moved.mtime()), (1000, 1));
}
