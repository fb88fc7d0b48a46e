// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that other tools made: unpacked once, never changed, shared by runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::tools::{self, fingerprint};
use coracle_tests::{Host, Image};
use rstest::rstest;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{Item, block, character, dir, fifo, file, hard, symlink};

#[path = "../../crates/oci/tests/common/tar.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod tar;

/// The one unpacked image of `host`.
fn unpacked(host: &Host) -> PathBuf {
    let images: Vec<_> = fs::read_dir(host.images().join("trees/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(images.len(), 1, "{images:?}");
    images[0].join("rootfs")
}

#[rstest]
fn unpacked_image_is_used_again_and_never_changes(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::new();
    let script = "rm /bin/ls; echo changed > /etc/passwd; mkdir /new; chmod 777 /bin; echo done";
    host.container(image).command(["true"]).expect(0);
    let before = fingerprint(&unpacked(&host));

    let run = host.container(image).shell(script).expect(0);

    assert_eq!(run.text(), "done");
    assert_eq!(fingerprint(&unpacked(&host)), before);
    let look_again = "test -x /bin/ls && ! test -e /new";
    host.container(image).shell(look_again).expect(0);
    host.assert_clean();
}

#[rstest]
fn archive_and_directory_of_one_image_are_unpacked_once(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::new();
    let archive = image.copy_to(&host).archive();

    let from_archive = host.container(archive).command(["echo", "archive"]);
    let from_directory = host.container(image).command(["echo", "directory"]);

    assert_eq!(from_archive.expect(0).text(), "archive");
    assert_eq!(from_directory.expect(0).text(), "directory");
    unpacked(&host);
}

#[rstest]
fn image_is_the_same_in_every_form(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let forms: [fn(&Host, Image) -> String; 4] = [
        |_, image| image.to_string(),
        |host, image| image.copy_to(host).archive(),
        |host, image| image.copy_to(host).with_plain_layers().to_string(),
        |host, image| image.copy_to(host).with_plain_layers().archive(),
    ];

    let trees = forms.map(|form| {
        let host = Host::new();
        let run = host
            .container(form(&host, image))
            .command(["echo", "hello"]);
        assert_eq!(run.expect(0).text(), "hello");
        fingerprint(&unpacked(&host))
    });

    assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
}

#[test]
fn docker_archive_and_index_of_zstd_layers_are_run() {
    let forms: [fn(&Host) -> String; 2] = [
        |host| {
            Image::BUSYBOX
                .copy_to(host)
                .docker_archive("example.org/one:1")
        },
        |host| {
            let layout = Image::BUSYBOX.copy_to(host);
            let compress = |bytes: Vec<u8>| compress_to_vec(&bytes[..], CompressionLevel::Fastest);
            layout.with_zstd_layers(compress).in_an_index().to_string()
        },
    ];

    let trees = forms.map(|form| {
        let host = Host::new();
        let run = host
            .container(form(&host))
            .shell("cat /etc/motd; test -e /etc/removed || echo removed");
        assert_eq!(run.expect(0).text(), "second layer\nremoved");
        host.assert_clean();
        fingerprint(&unpacked(&host))
    });

    assert_eq!(trees[0], trees[1]);
}

/// A capability to bind low ports, permitted and effective, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What builders write, one case after the other, to lie above another image.
fn layers() -> [Vec<Item>; 3] {
    let at = |name: &str| format!("cases/{name}");
    let longest = at(&"n".repeat(255));
    [
        vec![
            dir("cases"),
            file(at("deleted"), ""),
            dir(at("dropped")),
            file(at("dropped/f"), ""),
            dir(at("opaque")),
            file(at("opaque/old"), ""),
            file(at("one"), "linked"),
            symlink(at("outward"), "../../../../etc/motd"),
            dir(at("directory")),
            symlink(at("parent"), "directory"),
            dir(at("turns")),
            file(at("turns/f"), ""),
            file(at("user"), "").mode(0o4755).owner(1000, 1000),
            dir(at("sticky")).mode(0o1777),
            file(at("dated"), "").mtime(1_234_567_890),
            file(at("attributes"), "")
                .pax("SCHILY.xattr.user.word", "kept")
                .pax("SCHILY.xattr.security.capability", CAPABILITY),
            character(at("null"), 1, 3).mode(0o666),
            block(at("disk"), 8, 300).mode(0o660).owner(0, 6),
            fifo(at("pipe")).mode(0o640),
            file(&longest, "long"),
            file(b"cases/\xff\xfe", "no text"),
        ],
        vec![
            file(at(".wh.deleted"), ""),
            file(at(".wh.dropped"), ""),
            dir(at("opaque")),
            file(at("opaque/.wh..wh..opq"), ""),
            file(at("opaque/new"), ""),
            hard(at("two"), at("one")),
            file(at("parent/through"), ""),
            file(at("turns"), ""),
        ],
        vec![dir(at("turns")), file(at("turns/g"), "")],
    ]
}

/// A file system of its own, which keeps attributes of users.
struct Disk(PathBuf);

impl Disk {
    fn new(host: &Host) -> Self {
        let (image, point) = (host.file("disk", ""), host.folder("mounted"));
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(256 << 20).unwrap();
        tools::run("mkfs.ext4", &["-q", text(&image)]);
        tools::run("mount", &["-o", "loop", text(&image), text(&point)]);
        Self(point)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn container_sees_what_the_layers_say() {
    let host = Host::new();
    let layout = Image::BUSYBOX.copy_to(&host);
    for (number, items) in layers().iter().enumerate() {
        layout.add_layer(&host.file(&format!("{number}.tar"), tar::tar(items)));
    }
    let disk = Disk::new(&host);
    let script = "cd /cases; ls | wc -l; ls opaque directory turns; cat two outward
        stat -c '%h' one two; test one -ef two && echo same
        echo more >>one; chmod 600 one; cat two; stat -c '%h %a' one two
        stat -c '%n %F %a %u:%g' user sticky dated pipe null disk
        stat -c '%n %t:%T' null disk; stat -c '%Y' dated
        echo swallowed >null; { echo through >pipe & }; cat pipe
        ls | grep -c '^n\\{255\\}$'; cat \"$(printf '\\377\\376')\"; echo
        find . -name \"$(printf '\\377*')\" | od -An -tx1
        touch attributes
        tool getfattr -n user.word --only-values attributes; echo
        tool getfattr -n security.capability -e hex --only-values attributes | od -An -v -tx1";

    let run = host
        .container(&layout)
        .option("--root", &disk.0)
        .shell_with_tools(script)
        .expect(0);

    let expected = "16
directory:
through

opaque:
new

turns:
g
linkedsecond layer
2
2
same
linkedmore
2 600
2 600
user regular empty file 4755 1000:1000
sticky directory 1777 0:0
dated regular empty file 644 0:0
pipe fifo 640 0:0
null character special file 666 0:0
disk block special file 660 0:6
null 1:3
disk 8:12c
1234567890
through
1
no text
 2e 2f ff fe 0a
kept
 01 00 00 02 00 04 00 00 00 00 00 00 00 00 00 00
 00 00 00 00";
    assert_eq!(run.text(), expected, "{}", run.stderr);
    drop(disk);
    host.assert_clean();
}

#[rstest]
fn two_runs_of_one_image_at_once_do_not_see_each_other(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::new();
    let start = || {
        host.container(image)
            .interactive()
            .shell("echo $$ > /mine; echo ready; read word; ls /mine /theirs 2>/dev/null")
            .start()
    };
    let (mut first, mut second) = (start(), start());

    assert_eq!([first.line(), second.line()], ["ready", "ready"]);
    drop(first.stdin());
    drop(second.stdin());

    assert_eq!(first.finish().text(), "/mine");
    assert_eq!(second.finish().text(), "/mine");
    host.assert_clean();
}

#[test]
fn debian_image_runs_its_own_tools() {
    let host = Host::new();
    let script = ". /etc/os-release; echo $ID; dpkg-query -W -f '${Package}\\n' bash; perl -e 'print 6*7, \"\\n\"'; \
                  useradd -m someone && su someone -c 'id -un'";

    let run = host
        .container(Image::DEBIAN)
        .memory(512)
        .command(["bash", "-c", script])
        .expect(0);

    assert_eq!(run.text(), "debian\nbash\n42\nsomeone");
    host.assert_clean();
}
