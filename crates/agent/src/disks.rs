// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Block devices that the host gives to the sandbox, found by the serial numbers that it gave them.
//!
//! A mount of a spec whose source is such a link is either a bind mount, which gives the container the device node and the
//! right to use that one device, or one of the file system on it. That is made here, by the agent: the container's own
//! processes may not open the device, and so could not mount it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_agent_api::{AgentError, DISK_LINKS, ErrorKind};
use rustix::fs::FileType;

use crate::init::mounts;
use crate::log_error;
use crate::spec::mount_options::MountOptions;
use crate::spec::{DeviceRule, Mount, Spec};

/// What a link's name begins with.
const PREFIX: &str = "virtio-";

/// File systems that are tried first, in this order: to try one loads its module.
const USUAL: [&str; 4] = ["ext4", "xfs", "erofs", "btrfs"];

/// Makes a link in [`DISK_LINKS`] for each block device that has a serial number.
pub fn link_all() {
    if let Err(error) = link(Path::new("/sys/block"), Path::new(DISK_LINKS)) {
        log_error!("cannot make links to disks: {error}");
    }
}

fn link(devices: &Path, links: &Path) -> io::Result<()> {
    for device in fs::read_dir(devices)? {
        let device = device?;
        let Ok(serial) = fs::read_to_string(device.path().join("serial")) else {
            continue;
        };
        let serial = serial.trim_end_matches(['\0', '\n']);
        if !is_serial(serial) {
            continue;
        }
        fs::create_dir_all(links)?;
        let target = Path::new("../..").join(device.file_name());
        match std::os::unix::fs::symlink(target, links.join(format!("{PREFIX}{serial}"))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}

fn is_serial(serial: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_.:+-".contains(character);
    !serial.is_empty() && serial.chars().all(plain)
}

impl Mount {
    /// Name of the disk that is its source, if one is.
    #[must_use]
    pub fn disk(&self) -> Option<&str> {
        self.source
            .strip_prefix(DISK_LINKS)?
            .strip_prefix('/')
            .filter(|name| name.strip_prefix(PREFIX).is_some_and(is_serial))
    }

    /// Whether it is of the file system on a disk: one that the agent makes.
    #[must_use]
    pub fn is_of_disks_file_system(&self) -> bool {
        self.disk().is_some() && !self.is_bind()
    }
}

/// Makes the file systems of the disks that `spec` mounts, in the order of its mounts.
///
/// # Errors
///
/// [`ErrorKind::Mount`] names the disk.
pub fn mount_all(spec: &Spec) -> Result<Vec<OwnedFd>, AgentError> {
    spec.mounts
        .iter()
        .filter(|mount| mount.is_of_disks_file_system())
        .map(|mount| {
            mount_file_system(mount).map_err(|problem| {
                AgentError::new(
                    ErrorKind::Mount,
                    format!(
                        "cannot mount {} of {} on {}: {problem}",
                        mount.kind, mount.source, mount.destination
                    ),
                )
            })
        })
        .collect()
}

/// The rules that let a container use the disks that `spec` gives it as devices. Where the mount is read-only, so is the use:
/// a node on such a mount can be written to all the same.
///
/// # Errors
///
/// [`ErrorKind::Mount`] names a disk that is not there.
pub fn device_rules(spec: &Spec) -> Result<Vec<DeviceRule>, AgentError> {
    spec.mounts
        .iter()
        .filter(|mount| mount.disk().is_some() && mount.is_bind())
        .map(|mount| {
            let (major, minor) = number_of(&mount.source).map_err(|error| {
                let message = format!("cannot use {}: {error}", mount.source);
                AgentError::new(ErrorKind::Mount, message)
            })?;
            let access = if is_read_only(mount) { "r" } else { "rw" };
            Ok(DeviceRule {
                allow: true,
                kind: Some("b".to_owned()),
                major: Some(major),
                minor: Some(minor),
                access: Some(access.to_owned()),
            })
        })
        .collect()
}

fn number_of(path: &str) -> io::Result<(u32, u32)> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(io::Error::other("it is no block device"));
    }
    Ok((
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    ))
}

fn is_read_only(mount: &Mount) -> bool {
    use rustix::mount::MountAttrFlags;
    MountOptions::parse(&mount.options).is_ok_and(|options| {
        (options.set | options.set_recursive).contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
    })
}

fn mount_file_system(mount: &Mount) -> Result<OwnedFd, String> {
    number_of(&mount.source).map_err(|error| error.to_string())?;
    let mut options = MountOptions::parse(&mount.options).map_err(|error| error.to_string())?;
    if is_read_only(mount) {
        // Not only the mount: a file system that believes it may write replays its journal first.
        options.data.insert(0, ("ro".to_owned(), None));
    }
    if mount.kind != "auto" {
        return mounts::file_system(&mount.kind, &mount.source, &options)
            .map_err(|(step, problem)| format!("{step}: {problem}"));
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for kind in candidates(&known) {
        // Each says in its own way that it is not what the disk holds, and at the end there is nothing else to say.
        if let Ok(file_system) = mounts::file_system(kind, &mount.source, &options) {
            return Ok(file_system);
        }
    }
    Err("none of the file systems that the guest's kernel knows can be mounted".to_owned())
}

/// The file systems to try: the usual ones, and those of `/proc/filesystems` that need a device.
fn candidates(known: &str) -> Vec<&str> {
    let mut candidates = USUAL.to_vec();
    let others = known
        .lines()
        .filter_map(|line| line.strip_prefix('\t'))
        .filter(|kind| !USUAL.contains(kind));
    candidates.extend(others);
    candidates
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn mount(source: &str, kind: &str) -> Mount {
        Mount {
            destination: "/data".to_owned(),
            source: source.to_owned(),
            kind: kind.to_owned(),
            ..Mount::default()
        }
    }

    #[rstest]
    #[case("/dev/disk/by-id/virtio-data", Some("virtio-data"))]
    #[case("/dev/disk/by-id/virtio-", None)]
    #[case("/dev/disk/by-id/virtio-../vda", None)]
    #[case("/dev/disk/by-id/data", None)]
    #[case("/dev/vda", None)]
    #[case("dev/disk/by-id/virtio-data", None)]
    fn disk_is_told_by_its_source(#[case] source: &str, #[case] expected: Option<&str>) {
        assert_eq!(mount(source, "ext4").disk(), expected);
    }

    #[rstest]
    #[case("ext4", &[], true)]
    #[case("auto", &["ro"], true)]
    #[case("bind", &[], false)]
    #[case("", &[], false)]
    #[case("none", &["rbind"], false)]
    fn file_system_is_told_from_the_device(
        #[case] kind: &str,
        #[case] options: &[&str],
        #[case] expected: bool,
    ) {
        let mount = Mount {
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..mount("/dev/disk/by-id/virtio-data", kind)
        };

        assert_eq!(mount.is_of_disks_file_system(), expected);
    }

    #[test]
    fn devices_are_linked_by_their_serial_numbers() {
        let base = tempfile::tempdir().unwrap();
        let (devices, links) = (base.path().join("block"), base.path().join("links"));
        for (device, serial) in [
            ("vda", Some("data")),
            ("vdb", Some("a/b")),
            ("vdc", Some("")),
            ("loop0", None),
            ("vdd", Some("serial-number-of-20b\n")),
        ] {
            fs::create_dir_all(devices.join(device)).unwrap();
            if let Some(serial) = serial {
                fs::write(devices.join(device).join("serial"), serial).unwrap();
            }
        }

        link(&devices, &links).unwrap();
        link(&devices, &links).unwrap();

        let mut found: Vec<_> = fs::read_dir(&links)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, ["virtio-data", "virtio-serial-number-of-20b"]);
        let target = fs::read_link(links.join("virtio-data")).unwrap();
        assert_eq!(target.to_str(), Some("../../vda"));
    }

    #[test]
    fn usual_file_systems_are_tried_first_and_each_once() {
        let known = "nodev\tsysfs\n\text3\n\text4\nnodev\ttmpfs\n\tvfat\n";

        assert_eq!(
            candidates(known),
            ["ext4", "xfs", "erofs", "btrfs", "ext3", "vfat"]
        );
    }
}
