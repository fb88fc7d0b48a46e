// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is mounted in the container: kernel file systems, then volumes and disks.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

/// A volume or a disk, as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Path in the guest.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// The file system that is mounted from the source, a block device; `auto` for any that the guest knows. None: what
    /// is at the source is bound as it is.
    pub file_system: Option<String>,
}

/// Destination, type, source and options: docker's.
const STANDARD: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    (
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ),
    (
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// All mounts, in the order in which they are made. A volume takes the place of a standard mount
/// at the same path; one inside another comes after it.
pub(super) fn mounts(binds: &[Bind]) -> Vec<Mount> {
    let is_taken = |path: &str| binds.iter().any(|bind| bind.destination == Path::new(path));
    let standard = STANDARD.iter().filter(|(path, ..)| !is_taken(path)).map(
        |(path, kind, source, options)| mount(Path::new(path), kind, Path::new(source), options),
    );
    let mut volumes: Vec<&Bind> = binds.iter().collect();
    volumes.sort_by_key(|bind| bind.destination.components().count());
    let volumes = volumes.into_iter().map(|bind| {
        let access = if bind.read_only { "ro" } else { "rw" };
        let (kind, options): (&str, &[&str]) = match &bind.file_system {
            Some(kind) => (kind, &[access]),
            None => ("bind", &["rbind", "rprivate", access]),
        };
        mount(&bind.destination, kind, &bind.source, options)
    });
    standard.chain(volumes).collect()
}

fn mount(destination: &Path, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(destination: &str, read_only: bool) -> Bind {
        Bind {
            source: "/share/volumes/0".into(),
            destination: destination.into(),
            read_only,
            file_system: None,
        }
    }

    fn destinations(mounts: &[Mount]) -> Vec<&str> {
        mounts
            .iter()
            .map(|mount| mount.destination().to_str().unwrap())
            .collect()
    }

    #[test]
    fn standard_mounts_come_first_and_outer_ones_before_inner_ones() {
        let found = mounts(&[bind("/mnt/inner", false), bind("/mnt", false)]);

        let expected = [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/mnt",
            "/mnt/inner",
        ];
        assert_eq!(destinations(&found), expected);
    }

    #[test]
    fn volume_takes_the_place_of_a_standard_mount() {
        let found = mounts(&[bind("/dev/shm", false)]);

        let shm: Vec<&Mount> = found
            .iter()
            .filter(|mount| mount.destination() == Path::new("/dev/shm"))
            .collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0].typ().as_deref(), Some("bind"));
    }

    #[test]
    fn read_only_volume_is_mounted_read_only() {
        let found = mounts(&[bind("/data", true)]);

        let options = found.last().unwrap().options().clone().unwrap();
        assert_eq!(options, ["rbind", "rprivate", "ro"]);
    }
}
