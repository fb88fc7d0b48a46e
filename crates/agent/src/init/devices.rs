// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fills a container's `/dev`: the devices that every container has, those of its spec, and a few links.
//!
//! Only a `/dev` that the spec mounts a tmpfs on is filled. Any other is the image's, or a volume, and nodes made there
//! would outlive the container.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, Uid, makedev};
use rustix::io;

use super::in_root::Root;
use super::{failed, failure};
use crate::spec::Device;

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What every container has: path, major and minor number.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills `/dev` if the spec has mounted a tmpfs there.
pub(super) fn make(root: &Root, devices: &[Device]) -> Result<(), AgentError> {
    let Some(dev) = tmpfs_at_dev(root)? else {
        return match devices.first() {
            None => Ok(()),
            Some(device) => Err(AgentError::new(
                ErrorKind::Unsupported,
                format!(
                    "device {} of the spec needs a tmpfs mounted on /dev",
                    device.path
                ),
            )),
        };
    };
    let defaults = DEFAULTS.iter().map(|(path, major, minor)| Device {
        path: (*path).to_owned(),
        kind: "c".to_owned(),
        major: *major,
        minor: *minor,
        ..Device::default()
    });
    // A spec may give a default device other permissions: its own goes first.
    let defaults: Vec<_> = defaults
        .filter(|default| devices.iter().all(|device| device.path != default.path))
        .collect();
    for device in devices.iter().chain(&defaults) {
        make_node(root, device)
            .map_err(|error| failed(format!("cannot make the device {}", device.path), error))?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Err(io::Errno::EXIST) => {}
            result => result.map_err(|error| failed(format!("cannot make /dev/{name}"), error))?,
        }
    }
    Ok(())
}

/// `/dev`, if it is a tmpfs.
fn tmpfs_at_dev(root: &Root) -> Result<Option<OwnedFd>, AgentError> {
    let inspect = || -> io::Result<Option<OwnedFd>> {
        let dev = match root.open_without_links(Path::new("/dev")) {
            Err(io::Errno::NOENT | io::Errno::LOOP) => return Ok(None),
            result => result?,
        };
        let tmpfs = rustix::fs::fstatfs(&dev)?.f_type == TMPFS_MAGIC;
        Ok(tmpfs.then_some(dev))
    };
    inspect().map_err(|error| failure(ErrorKind::Mount, "cannot inspect /dev", error))
}

fn make_node(root: &Root, device: &Device) -> io::Result<()> {
    let path = Path::new(&device.path);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Errno::INVAL);
    };
    let directory = root.make_directory(directory)?;
    let (kind, number) = match device.kind.as_str() {
        "b" => (FileType::BlockDevice, makedev(device.major, device.minor)),
        "p" => (FileType::Fifo, 0),
        _ => (
            FileType::CharacterDevice,
            makedev(device.major, device.minor),
        ),
    };
    // The type bits that some engines leave in are not permissions.
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(&directory, name, kind, mode, number) {
        Err(io::Errno::EXIST) => check_node(&directory, name, kind, number)?,
        result => result?,
    }
    rustix::fs::chownat(
        &directory,
        name,
        Some(Uid::from_raw(device.uid)),
        Some(Gid::from_raw(device.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Accepts what is there already, a mount of the spec for example, only if it is the device that was to be made.
fn check_node(directory: &OwnedFd, name: &OsStr, kind: FileType, number: Dev) -> io::Result<()> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number {
        return Ok(());
    }
    Err(io::Errno::EXIST)
}
