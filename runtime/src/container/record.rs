// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container is and how it fares, as its runner last wrote it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coracle_network::{Attachment, Network};
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Id, Time};

/// Name of the file in the container's directory.
const FILE: &str = "record.json";
/// Name that it has until it is whole.
const UNFINISHED: &str = "record.json.new";
/// The most bytes of a record: the command and the environment may be long.
const LIMIT: u64 = 8 << 20;

/// The most bytes by which a record grows at its container's end.
const REASON: usize = 8 << 10;

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: Id,
    /// What the user calls it; its id if they do not.
    pub name: String,
    /// What it was made from, as the user named it.
    pub image: String,
    /// The tree it was made from, which is only read.
    pub tree: PathBuf,
    pub created: Time,
    pub status: Status,
    /// Whether it goes with its end.
    pub remove: bool,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// What runs in which machine, as it was planned; nothing until it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<serde_json::Value>,
    /// Its networks, as the user named them.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<String>,
}

/// How a container fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Status {
    /// Its machine is being made.
    Starting {
        /// The process of the host that makes it.
        runner: u32,
    },
    /// Its command runs.
    Running {
        /// Since when.
        since: Time,
        /// The process of the host that runs it.
        runner: u32,
    },
    /// Its command has ended, or could not be run.
    Exited {
        /// When.
        at: Time,
        /// The command's exit status, or coracle's.
        status: u8,
        /// Why, where that is not the command's own affair.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl Status {
    /// Whether its command has been started.
    pub fn has_begun(&self) -> bool {
        !matches!(self, Self::Starting { .. })
    }
}

impl Record {
    /// Whether the container outlives its run.
    pub fn is_kept(&self) -> bool {
        !self.remove && self.status.has_begun()
    }

    /// What stands for the record of a container of which no more is known.
    pub fn unreadable(id: Id, created: Time) -> Self {
        Self {
            name: id.to_string(),
            id,
            image: String::new(),
            tree: PathBuf::new(),
            created,
            status: Status::Starting { runner: 0 },
            remove: false,
            stop_signal: libc::SIGTERM,
            plan: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// Takes down what the container's network turned out to be.
    pub fn note_network(&mut self, networks: &[Network], attachment: Option<&Attachment>) {
        self.networks = networks.iter().map(ToString::to_string).collect();
        let Some(attachment) = attachment else { return };
        let interfaces = attachment.interfaces().iter();
        self.addresses = interfaces
            .flat_map(|interface| &interface.addresses)
            .map(ToString::to_string)
            .collect();
        self.ports = attachment.ports().iter().map(ToString::to_string).collect();
    }

    /// Whether there is a record in a container's directory, such as it may be.
    pub fn is_in(directory: &Path) -> bool {
        match fs::symlink_metadata(directory.join(FILE)) {
            Err(error) => error.kind() != io::ErrorKind::NotFound,
            Ok(_) => true,
        }
    }

    /// The record in a container's directory; nothing if there is none.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let what = || format!("cannot read {}", path.display());
        let file = match File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(what)?,
        };
        let mut text = Vec::new();
        file.take(LIMIT + 1)
            .read_to_end(&mut text)
            .with_context(what)?;
        ensure!(text.len() as u64 <= LIMIT, "{} is too long", path.display());
        serde_json::from_slice(&text).with_context(what)
    }

    /// Removes the record from a container's directory: what else is there is no container any more.
    pub fn remove(directory: &File) -> io::Result<()> {
        match unlinkat(directory, FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the record into the container's directory in the place of an earlier one. A host that loses its power
    /// finds one of the two, if the container is one that stays.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(UNFINISHED);
        let what = || format!("cannot write {}", path.display());
        let text = serde_json::to_vec(self).with_context(what)?;
        ensure!(
            text.len() as u64 <= LIMIT,
            "the container's command, environment and mounts take {} bytes to write down; {LIMIT} is the most",
            text.len()
        );
        // What was reserved is written over, which needs no further room.
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(what)?;
        file.write_all(&text).with_context(what)?;
        file.set_len(text.len() as u64).with_context(what)?;
        if self.is_kept() {
            file.sync_data().with_context(what)?;
        }
        fs::rename(&path, directory.join(FILE)).with_context(what)
    }

    /// Takes the room on the disk for the next [`Self::write`]: whatever fills the disk by then, how the container
    /// ended can be told.
    pub fn reserve(&self, directory: &Path) -> Result<()> {
        let path = directory.join(UNFINISHED);
        let what = || format!("cannot make {}", path.display());
        let text = serde_json::to_vec(self).with_context(what)?;
        // Not by fallocate(2): where blocks are not written yet, the first write may need others still.
        fs::write(&path, vec![b' '; text.len() + REASON]).with_context(what)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::ErrorKind;
    use std::thread;

    use rustix::mount::MountFlags;

    use super::*;
    use crate::run::mounts::enter_namespace;

    /// A record of a container that runs.
    pub fn running(id: &str, name: &str) -> Record {
        Record {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            image: "./busybox".to_owned(),
            tree: "/store/rootfs".into(),
            created: Time::now(),
            status: Status::Running {
                since: Time::now(),
                runner: 1,
            },
            remove: false,
            stop_signal: libc::SIGTERM,
            plan: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn record_is_read_as_it_was_written_last() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = running("0123456789ab", "web");
        record.write(directory.path()).unwrap();
        record.status = Status::Exited {
            at: Time::now(),
            status: 137,
            reason: Some("out of memory".to_owned()),
        };

        record.write(directory.path()).unwrap();

        assert_eq!(Record::read(directory.path()).unwrap(), Some(record));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn room_that_was_reserved_is_enough_on_a_full_disk() {
        let disk = tempfile::tempdir().unwrap();
        let point = disk.path().to_owned();
        let mut record = running("0123456789ab", "web");
        // In a thread, whose mounts are its own.
        let fill = move || {
            enter_namespace().unwrap();
            let options = Some(c"size=1m");
            rustix::mount::mount("disk", &point, "tmpfs", MountFlags::empty(), options).unwrap();
            record.write(&point).unwrap();
            record.reserve(&point).unwrap();
            let filled = fs::write(point.join("filler"), vec![0; 2 << 20]);
            record.status = Status::Exited {
                at: Time::now(),
                status: 7,
                reason: Some("x".repeat(4000)),
            };
            let written = record.write(&point);
            (
                filled,
                written,
                Record::read(&point).unwrap() == Some(record),
            )
        };

        let (filled, written, is_same) = thread::spawn(fill).join().unwrap();

        assert_eq!(filled.unwrap_err().kind(), ErrorKind::StorageFull);
        written.unwrap();
        assert!(is_same);
    }

    #[test]
    fn half_a_record_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{\"id\": \"0123").unwrap();

        let error = Record::read(directory.path()).unwrap_err();

        assert!(error.to_string().contains(FILE), "{error}");
    }

    #[test]
    fn endless_record_is_not_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join(FILE))
            .unwrap()
            .set_len(LIMIT + 1)
            .unwrap();

        let error = Record::read(directory.path()).unwrap_err();

        assert!(error.to_string().ends_with("is too long"), "{error}");
    }

    #[test]
    fn no_record_is_no_error() {
        let directory = tempfile::tempdir().unwrap();

        assert_eq!(Record::read(directory.path()).unwrap(), None);
        assert!(!Record::is_in(directory.path()));
    }

    #[test]
    fn record_that_could_not_be_read_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = running("0123456789ab", "web");
        record.write(directory.path()).unwrap();
        record.plan = Some("x".repeat(8 << 20).into());

        let error = record.write(directory.path()).unwrap_err();

        assert!(
            error.to_string().ends_with("8388608 is the most"),
            "{error}"
        );
        assert!(
            Record::read(directory.path())
                .unwrap()
                .unwrap()
                .plan
                .is_none()
        );
    }
}
