// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that has not the room for an image: that is said, and the room there was is there again.

use std::path::PathBuf;
use std::process::Command;

use rustix::fs::statvfs;

use crate::Test;
use crate::host::{Host, image_of};
use crate::pulling::{is_layer, serve, try_to_run};

pub const TESTS: &[Test] = &[
    (
        "pull_onto_a_full_disk_leaves_nothing",
        pull_onto_a_full_disk_leaves_nothing,
    ),
    (
        "image_that_could_not_be_unpacked_is_not_pulled_again",
        image_that_could_not_be_unpacked_is_not_pulled_again,
    ),
    (
        "load_onto_a_full_disk_leaves_nothing",
        load_onto_a_full_disk_leaves_nothing,
    ),
];

pub const OF_RUNS: &[Test] = &[(
    "run_on_a_full_disk_leaves_nothing",
    run_on_a_full_disk_leaves_nothing,
)];

/// More than there is room for.
const LARGE: usize = 10 << 20;

/// A file system of 8 MiB in the place of all that a host keeps; unmounted in the end.
struct Disk(PathBuf);

impl Disk {
    fn of(host: &Host) -> Self {
        let root = host.path("root");
        std::fs::create_dir(&root).unwrap();
        let disk = Self(root);
        disk.mount("size=8m,mode=0755");
        disk
    }

    fn mount(&self, options: &str) {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "disk"])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(mounted.success());
    }

    fn used(&self) -> u64 {
        let all = statvfs(&self.0).unwrap();
        (all.f_blocks - all.f_bfree) * all.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fails unless the error is one sentence of the disk, and the store has nothing that was begun.
#[track_caller]
fn assert_full(host: &Host, stderr: &str, starts_with: &str) {
    let sentence = stderr.lines().last().unwrap_or_default();
    assert!(
        sentence.starts_with(starts_with)
            && sentence.ends_with("No space left on device (os error 28)"),
        "{stderr}"
    );
    let is_error = |line: &&str| line.starts_with("coracle: ");
    assert_eq!(stderr.lines().filter(is_error).count(), 1, "{stderr}");
    for below in ["tmp", "trees"] {
        assert!(host.files(below).is_empty(), "{below}");
    }
}

fn pull_onto_a_full_disk_leaves_nothing() {
    let server = serve(image_of("one", &[7; LARGE]), |_| None);
    let host = Host::new();
    let disk = Disk::of(&host);

    let error = host.run(&["pull", &server.image()]).failed();

    assert_full(&host, &error, "coracle: cannot pull the image ");
    assert!(host.names().is_empty());
    assert!(disk.used() < 1 << 20, "{}", disk.used());
}

fn image_that_could_not_be_unpacked_is_not_pulled_again() {
    let image = image_of("one", &[7; LARGE / 2]);
    let own = image.clone();
    let server = serve(image, |_| None);
    let host = Host::new();
    let disk = Disk::of(&host);

    let error = host.run(&["pull", &server.image()]).failed();
    assert_full(&host, &error, "coracle: cannot unpack the image ");
    disk.mount("remount,size=32m");
    host.run(&["pull", &server.image()]).ok();

    let layers = server.requests();
    let layers = layers.iter().filter(|request| is_layer(&own, request));
    assert_eq!(layers.count(), 1);
}

fn load_onto_a_full_disk_leaves_nothing() {
    let host = Host::new();
    let layout = host.layout("layout", &image_of("one", &[7; LARGE]));
    let disk = Disk::of(&host);

    let error = host.run(&["load", &layout, "one"]).failed();

    assert_full(&host, &error, "coracle: cannot load ");
    assert!(host.names().is_empty());
    assert!(disk.used() < 1 << 20, "{}", disk.used());
}

fn run_on_a_full_disk_leaves_nothing() {
    let host = Host::new();
    let layout = host.layout("layout", &image_of("one", &[7; LARGE]));
    let disk = Disk::of(&host);

    let error = try_to_run(&host, &[], &layout);

    assert_full(&host, &error, "coracle: cannot unpack the image ");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(disk.used() < 1 << 20, "{}", disk.used());
    let containers = std::fs::read_dir(host.path("root/containers"));
    assert_eq!(containers.map_or(0, Iterator::count), 0);
}
