// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks that a container sees: `SOURCE:DST[:ro][:fs=TYPE]`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::volume::{VolumeError, clean_destination};

/// Below it a disk is a device, not a file system.
const DEVICES: &str = "/dev";
/// The most characters of a file system's name.
const FILE_SYSTEM: usize = 32;

/// A raw disk image or block device of the host, or the socket of who serves one, and what the container sees of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the container: where its file system is mounted, or, below `/dev`, the device itself.
    pub destination: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Which file system is on it; unless named, the guest tries those it knows.
    pub file_system: Option<String>,
}

/// A disk that cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The text is not of the form `SOURCE:DST[:OPTION]…`.
    #[error("disk `{0}` is not of the form SOURCE:DST, SOURCE:DST:ro or SOURCE:DST:fs=TYPE")]
    Form(String),
    /// An option is unknown.
    #[error("disk `{disk}` has the unknown option `{option}`; ro, rw and fs=TYPE are known")]
    Option {
        /// The whole text.
        disk: String,
        /// The option.
        option: String,
    },
    /// A file system on what is to be a device.
    #[error(
        "disk `{0}` is a device by its destination below /dev, so it is not mounted and fs= means nothing"
    )]
    DeviceWithFileSystem(String),
    /// The destination is not a place for a disk.
    #[error(transparent)]
    Destination(#[from] VolumeError),
}

impl Disk {
    /// Whether the container sees the device, not the file system on it.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.destination.starts_with(DEVICES)
    }
}

impl FromStr for Disk {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let form = || DiskError::Form(text.escape_debug().to_string());
        let mut parts = text.split(':');
        let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
            return Err(form());
        };
        if source.is_empty() || destination.is_empty() || text.contains('\0') {
            return Err(form());
        }
        let mut disk = Self {
            source: source.into(),
            destination: clean_destination(destination)?,
            read_only: false,
            file_system: None,
        };
        if disk.destination == Path::new(DEVICES) {
            return Err(form());
        }
        for option in parts {
            match (option, option.strip_prefix("fs=")) {
                ("ro", _) => disk.read_only = true,
                ("rw", _) => disk.read_only = false,
                (_, Some(name)) if is_file_system(name) => {
                    disk.file_system = Some(name.to_owned());
                }
                _ => {
                    return Err(DiskError::Option {
                        disk: text.to_owned(),
                        option: option.escape_debug().to_string(),
                    });
                }
            }
        }
        if disk.is_device() && disk.file_system.is_some() {
            return Err(DiskError::DeviceWithFileSystem(text.to_owned()));
        }
        Ok(disk)
    }
}

fn is_file_system(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=FILE_SYSTEM).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn disk(source: &str, destination: &str) -> Disk {
        Disk {
            source: source.into(),
            destination: destination.into(),
            read_only: false,
            file_system: None,
        }
    }

    #[rstest]
    #[case::plain("disk.img:/data", disk("disk.img", "/data"))]
    #[case::device("/dev/vg/lv:/dev/xvda", disk("/dev/vg/lv", "/dev/xvda"))]
    #[case::read_only("a:/b:ro", Disk { read_only: true, ..disk("a", "/b") })]
    #[case::all("a:/b/:ro:fs=ext4", Disk { read_only: true, file_system: Some("ext4".into()), ..disk("a", "/b") })]
    fn disk_is_read(#[case] text: &str, #[case] expected: Disk) {
        assert_eq!(text.parse::<Disk>().unwrap(), expected);
    }

    #[rstest]
    #[case::nothing("")]
    #[case::no_destination("disk.img")]
    #[case::no_source(":/data")]
    #[case::empty_destination("a:")]
    #[case::relative("a:b")]
    #[case::root("a:/")]
    #[case::all_devices("a:/dev")]
    #[case::option("a:/b:cache")]
    #[case::empty_option("a:/b:")]
    #[case::no_file_system("a:/b:fs=")]
    #[case::odd_file_system("a:/b:fs=../x")]
    #[case::device_with_file_system("a:/dev/x:fs=ext4")]
    #[case::nul("a:/b\0")]
    fn bad_disk_is_refused(#[case] text: &str) {
        assert!(text.parse::<Disk>().is_err());
    }

    #[test]
    fn what_is_below_dev_is_a_device() {
        assert!(disk("a", "/dev/disk/x").is_device());
        assert!(!disk("a", "/devices").is_device());
    }
}
