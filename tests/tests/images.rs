// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that other tools made: unpacked once, never changed, shared by runs.

use std::fs;
use std::path::PathBuf;

use coracle_tests::tools::fingerprint;
use coracle_tests::{Host, Image};
use rstest::rstest;

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
