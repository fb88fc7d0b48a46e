// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Block devices that the host gives to the sandbox, found by the serial numbers that it gave them, or by their numbers
//! among the machine's devices.
//!
//! A mount of a spec whose source is such a link is either a bind mount, which gives the container the device node and the
//! right to use that one device, or one of the file system on it. That is made here, by the agent: the container's own
//! processes may not open the device, and so could not mount it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use coracle_agent_api::{AgentError, DISK_LINKS, ErrorKind};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::init::mounts;
use crate::log_error;
use crate::spec::mount_options::MountOptions;
use crate::spec::{DeviceRule, Mount, Spec};

/// What a link's name begins with that is by a serial number.
const BY_SERIAL: &str = "virtio-";
/// What one begins with that is by the number in ACPI's tables.
const BY_NUMBER: &str = "acpi-";

/// File systems that are tried first, in this order: to try one loads its module.
const USUAL: [&str; 4] = ["ext4", "xfs", "erofs", "btrfs"];

/// How long a disk may take to tell its serial number: it is the disk that is asked for it.
const SERIAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a disk may take to have its file system mounted, which may have to be put right first. Less than the host
/// waits for the container, so that it learns which disk it is.
const MOUNT_PATIENCE: Duration = Duration::from_secs(60);

/// Makes links in [`DISK_LINKS`] for each block device: by its serial number, and by the number that it has in ACPI's
/// tables, which the machine gives it and not who serves it.
pub fn link_all() {
    let (devices, links) = (Path::new("/sys/block"), Path::new(DISK_LINKS));
    if let Err(error) = link(devices, links, SERIAL_PATIENCE) {
        log_error!("cannot make links to disks: {error}");
    }
}

/// A name that several devices have is nobody's: whoever serves one of them may have chosen the serial number of another,
/// to be taken for it.
fn link(devices: &Path, links: &Path, patience: Duration) -> io::Result<()> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (device, name) in numbers(devices)?.chain(serials(devices, patience)?) {
        found.entry(name).or_default().push(device);
    }
    if !found.is_empty() {
        fs::create_dir_all(links)?;
    }
    for (name, devices) in found {
        let [device] = &devices[..] else {
            log_error!("{} are all {name}", devices.join(", "));
            continue;
        };
        let target = Path::new("../..").join(device);
        match std::os::unix::fs::symlink(target, links.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                log_error!("cannot make a link to the disk {device}: {error}");
            }
            _ => {}
        }
    }
    Ok(())
}

/// The block devices that are in ACPI's tables, with their names by those.
fn numbers(devices: &Path) -> io::Result<impl Iterator<Item = (String, String)>> {
    let devices = fs::read_dir(devices)?.flatten();
    Ok(devices.filter_map(|device| {
        // The virtio device is below the one of the platform.
        let uid = device.path().join("device/../firmware_node/uid");
        let uid = fs::read_to_string(uid).ok()?;
        let number = uid.trim_end().parse::<u32>().ok()?;
        Some((
            device.file_name().into_string().ok()?,
            format!("{BY_NUMBER}{number}"),
        ))
    }))
}

/// The block devices that have a serial number, with their names by it. All are asked at once, since one may never answer.
fn serials(devices: &Path, patience: Duration) -> io::Result<Vec<(String, String)>> {
    let mut asked = Vec::new();
    for device in fs::read_dir(devices)? {
        let device = device?;
        let file = device.path().join("serial");
        if let (Ok(name), true) = (device.file_name().into_string(), file.exists()) {
            asked.push((name, spawn(move || fs::read_to_string(file))?));
        }
    }
    let deadline = Instant::now() + patience;
    let mut found = Vec::new();
    for (device, answer) in asked {
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(serial)) => {
                let serial = serial.trim_end_matches(['\0', '\n']);
                if is_plain(serial) {
                    found.push((device, format!("{BY_SERIAL}{serial}")));
                }
            }
            Ok(Err(error)) => log_error!("the disk {device} has no serial number: {error}"),
            Err(_) => log_error!("the disk {device} does not answer within {patience:?}"),
        }
    }
    Ok(found)
}

/// Has a thread do what a disk may never let it finish.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<Receiver<T>> {
    let (tell, told) = channel();
    let thread = thread::Builder::new().name("disk".to_owned());
    // Whoever asked may have gone on without an answer.
    thread.spawn(move || _ = tell.send(work()))?;
    Ok(told)
}

fn is_plain(name: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_.:+-".contains(character);
    !name.is_empty() && name.chars().all(plain)
}

impl Mount {
    /// Name of the disk that is its source, if one is.
    #[must_use]
    pub fn disk(&self) -> Option<&str> {
        self.source
            .strip_prefix(DISK_LINKS)?
            .strip_prefix('/')
            .filter(|name| {
                let mut prefixes = [BY_SERIAL, BY_NUMBER].into_iter();
                let rest = prefixes.find_map(|prefix| name.strip_prefix(prefix));
                rest.is_some_and(is_plain)
            })
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
            mount_in_time(mount.clone(), MOUNT_PATIENCE).map_err(|problem| {
                let kind = match mount.kind.as_str() {
                    "auto" => String::new(),
                    kind => format!("{kind} of "),
                };
                AgentError::new(
                    ErrorKind::Mount,
                    format!(
                        "cannot mount {kind}{} on {}: {problem}",
                        mount.source, mount.destination
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
    let stat = match rustix::fs::stat(path) {
        Err(Errno::NOENT) => {
            let message = "no disk has this name, or several have it";
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        found => found?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(io::Error::other("it is not a block device"));
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

fn mount_in_time(mount: Mount, patience: Duration) -> Result<OwnedFd, String> {
    let done = spawn(move || mount_file_system(&mount)).map_err(|error| error.to_string())?;
    done.recv_timeout(patience)
        .unwrap_or_else(|_| Err(format!("the disk does not answer within {patience:?}")))
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
    let mut reasons = Vec::new();
    for kind in candidates(&known) {
        match mounts::file_system(kind, &mount.source, &options) {
            Ok(file_system) => return Ok(file_system),
            // Each says in its own way that it is not what the disk holds.
            Err((step, problem)) => reasons.push(format!("{kind}: {step}: {problem}")),
        }
    }
    let reasons = reasons.join("; ");
    Err(format!(
        "none of the file systems that the guest's kernel knows can be mounted: {reasons}"
    ))
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
    use std::path::PathBuf;

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
    #[case("/dev/disk/by-id/acpi-4096", Some("acpi-4096"))]
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

    /// Ample for what answers.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Devices, and where their links are to be.
    fn devices(serials: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let base = tempfile::tempdir().unwrap();
        let (devices, links) = (base.path().join("block"), base.path().join("links"));
        for (device, serial) in serials {
            fs::create_dir_all(devices.join(device)).unwrap();
            fs::write(devices.join(device).join("serial"), serial).unwrap();
        }
        (base, devices, links)
    }

    /// The links, and what they lead to.
    fn links_in(directory: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let target = fs::read_link(entry.path()).unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, target.to_str().unwrap().to_owned())
            })
            .collect();
        found.sort();
        found
    }

    fn pair(name: &str, target: &str) -> (String, String) {
        (name.to_owned(), target.to_owned())
    }

    #[test]
    fn devices_are_linked_by_their_serial_numbers() {
        let (_base, devices, links) = devices(&[
            ("vda", "data"),
            ("vdb", "a/b"),
            ("vdc", ""),
            ("vdd", "serial-number-of-20b\n"),
        ]);
        fs::create_dir(devices.join("loop0")).unwrap();

        link(&devices, &links, PATIENCE).unwrap();
        link(&devices, &links, PATIENCE).unwrap();

        let expected = [
            pair("virtio-data", "../../vda"),
            pair("virtio-serial-number-of-20b", "../../vdd"),
        ];
        assert_eq!(links_in(&links), expected);
    }

    #[test]
    fn devices_are_linked_by_their_numbers_in_the_tables() {
        let (base, devices, links) = devices(&[("vda", "data"), ("vdb", "")]);
        // As sysfs has it: the platform's device, the virtio device below it, and the disk, which links back.
        let platform = base.path().join("platform");
        fs::create_dir_all(platform.join("virtio0")).unwrap();
        fs::create_dir(platform.join("firmware_node")).unwrap();
        fs::write(platform.join("firmware_node/uid"), "4096\n").unwrap();
        std::os::unix::fs::symlink(platform.join("virtio0"), devices.join("vdb/device")).unwrap();

        link(&devices, &links, PATIENCE).unwrap();

        let expected = [
            pair("acpi-4096", "../../vdb"),
            pair("virtio-data", "../../vda"),
        ];
        assert_eq!(links_in(&links), expected);
    }

    #[test]
    fn serial_number_of_two_devices_is_nobodys() {
        let (_base, devices, links) =
            devices(&[("vda", "data"), ("vdb", "other"), ("vdc", "data")]);

        link(&devices, &links, PATIENCE).unwrap();

        assert_eq!(links_in(&links), [pair("virtio-other", "../../vdb")]);
    }

    #[test]
    fn disk_that_does_not_answer_keeps_no_other_from_its_link() {
        let (_base, devices, links) = devices(&[("vda", ""), ("vdb", "data")]);
        let silent = devices.join("vda/serial");
        fs::remove_file(&silent).unwrap();
        // Nobody will ever write to it.
        rustix::fs::mkfifoat(rustix::fs::CWD, &silent, rustix::fs::Mode::RUSR).unwrap();

        link(&devices, &links, Duration::from_secs(1)).unwrap();

        assert_eq!(links_in(&links), [pair("virtio-data", "../../vdb")]);
    }

    #[test]
    fn disk_that_is_not_there_is_told() {
        let problem = mount_in_time(mount("/dev/disk/by-id/virtio-none", "ext4"), PATIENCE);

        let expected = "no disk has this name, or several have it";
        assert_eq!(problem.unwrap_err(), expected);
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
