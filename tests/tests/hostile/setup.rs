// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the attacks have in common: their program, and what they are after.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use coracle_tests::{Container, Host, Image, guests, path_from_environment};

/// The attackers' program, which is linked statically.
pub fn program() -> Vec<u8> {
    fs::read(path_from_environment("CORACLE_HOSTILE")).expect("the attackers' program is built")
}

/// A run whose guest's first process is no agent: it does what `attack` says.
pub fn attacked<'a>(host: &'a Host, attack: &str) -> Container<'a> {
    let files = [("attack", attack.as_bytes())];
    let initramfs = guests::initramfs_with(&program(), &files);
    let name = format!("{}.cpio", attack.replace(' ', "-"));
    host.container(Image::BUSYBOX)
        .initrd(&host.file(&name, initramfs))
        .command(["true"])
}

/// A tree of busybox and the attackers' program, `/hostile`.
pub fn tree(host: &Host) -> PathBuf {
    let tree = host.folder("tree");
    let bin = host.folder("tree/bin");
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "cat", "ls", "pwd", "true", "mkdir", "mount"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    fs::copy(
        path_from_environment("CORACLE_HOSTILE"),
        tree.join("hostile"),
    )
    .unwrap();
    tree
}

/// A directory of the host that nobody may change or read.
pub struct Victim {
    pub path: PathBuf,
    before: Vec<(PathBuf, String)>,
}

impl Victim {
    /// What is in a victim's file.
    pub const SECRET: &str = "secret of the host";

    /// Makes one among the files of `host`, long ago.
    pub fn new(host: &Host) -> Self {
        let path = host.folder("victim");
        // What a clean-up of half unpacked images, or of dead runs, would take for its own.
        for file in ["file", "directory/file", "tmp/directory/file"] {
            let file = path.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, Self::SECRET).unwrap();
        }
        for directory in ["directory", "tmp/directory", "tmp", "."] {
            coracle_tests::tools::run(
                "touch",
                &["-d", "2020-02-02", path.join(directory).to_str().unwrap()],
            );
        }
        let before = state(&path);
        Self { path, before }
    }

    /// Fails if anything in it was changed.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        let now = state(&self.path);
        let gone: Vec<_> = self.before.iter().filter(|it| !now.contains(it)).collect();
        let new: Vec<_> = now.iter().filter(|it| !self.before.contains(it)).collect();
        assert!(
            gone.is_empty() && new.is_empty(),
            "the victim is harmed: gone {gone:?}, new {:?} and others",
            new.first()
        );
    }
}

/// What is in a directory: names, and what each is or holds.
fn state(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut state: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .flat_map(|path| match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {
                [vec![(path.clone(), "a directory".into())], state(&path)].concat()
            }
            _ => vec![(path.clone(), fs::read_to_string(&path).unwrap_or_default())],
        })
        .collect();
    state.sort();
    state
}
