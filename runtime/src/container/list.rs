// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The containers of a host, and how each fares in truth.

use anyhow::{Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::directory::{Pair, ids_in, open_directory};
use super::{Id, Places, Record, Status, Time};

/// All containers of a host.
pub struct Containers {
    places: Places,
}

/// A container that was found.
#[derive(Debug)]
pub struct Found {
    pub record: Record,
    pub directories: Pair,
    pub state: State,
    /// Whether a process is at it: one that runs it, or clears up after it.
    pub is_held: bool,
}

/// How a container fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its machine is being made.
    Starting,
    /// Its command runs.
    Running {
        /// Since when.
        since: Time,
        /// The process of the host that runs it.
        runner: u32,
    },
    /// Its command has ended.
    Exited {
        /// When.
        at: Time,
        /// The exit status.
        status: u8,
        /// Why, where that is not the command's own affair.
        reason: Option<String>,
    },
    /// What ran it was killed, or the host was: how its command ended is not known.
    Lost,
}

impl State {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
            Self::Lost => "lost",
        }
    }

    /// Whether there is a process for it.
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Starting | Self::Running { .. })
    }

    /// What a record says of a container that has a runner, or has none.
    fn of(status: &Status, alive: bool) -> Self {
        match status.clone() {
            Status::Exited { at, status, reason } => Self::Exited { at, status, reason },
            _ if !alive => Self::Lost,
            Status::Starting => Self::Starting,
            Status::Running { since, runner } => Self::Running { since, runner },
        }
    }
}

impl Containers {
    pub fn new(places: Places) -> Self {
        Self { places }
    }

    /// Every container, the youngest first. What cannot be read is no container yet, or no more.
    pub fn list(&self) -> Vec<Found> {
        let mut found: Vec<_> = ids_in(&self.places.containers)
            .iter()
            .filter_map(|id| self.look_at(id))
            .collect();
        found.sort_by_key(|found| std::cmp::Reverse(found.record.created));
        found
    }

    /// The container of this id, of this name, or whose id alone begins so.
    pub fn find(&self, name: &str) -> Result<Found> {
        if let Some(found) = name.parse().ok().and_then(|id| self.look_at(&id)) {
            return Ok(found);
        }
        let (mut named, mut beginning) = (None, Vec::new());
        for found in self.list() {
            if found.record.name == name {
                named = Some(found);
            } else if !name.is_empty() && found.record.id.as_str().starts_with(name) {
                beginning.push(found);
            }
        }
        match (named, beginning.pop()) {
            (Some(found), _) => Ok(found),
            (None, Some(found)) if beginning.is_empty() => Ok(found),
            (None, Some(_)) => bail!("'{name}' is the beginning of more than one container's id"),
            (None, None) => bail!(
                "there is no container '{}' (coracle ps -a lists those there are)",
                name.escape_debug()
            ),
        }
    }

    fn look_at(&self, id: &Id) -> Option<Found> {
        let directories = self.places.directories(id);
        // The lock first: who holds none has written its last.
        let alive = is_locked(&directories)?;
        let record = Record::read(&directories.container).ok()?;
        let state = State::of(&record.status, alive);
        Some(Found {
            record,
            directories,
            state,
            is_held: alive,
        })
    }
}

impl Found {
    /// How it fares by now.
    pub fn look_again(&mut self) {
        let alive = is_locked(&self.directories).unwrap_or(false);
        self.is_held = alive;
        match Record::read(&self.directories.container) {
            Ok(record) => {
                self.state = State::of(&record.status, alive);
                self.record = record;
            }
            Err(_) => self.state = State::Lost,
        }
    }
}

/// Whether somebody runs the container; nothing if there is none.
fn is_locked(directories: &Pair) -> Option<bool> {
    let directory = open_directory(&directories.container)?;
    Some(flock(&directory, FlockOperation::NonBlockingLockShared).is_err())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use coracle_network::NetworkConfig;
    use rstest::rstest;

    use super::super::record::tests::running;
    use super::*;

    struct Host {
        containers: Containers,
        _directory: tempfile::TempDir,
    }

    /// A host with containers of these ids and names.
    fn host(names: &[(&str, &str)]) -> Host {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            containers: directory.path().join("containers"),
            state: directory.path().join("state"),
            store: directory.path().to_owned(),
            network: NetworkConfig::default(),
        };
        for (id, name) in names {
            let own = places.containers.join(id);
            fs::create_dir_all(&own).unwrap();
            running(id, name).write(&own).unwrap();
        }
        Host {
            containers: Containers::new(places),
            _directory: directory,
        }
    }

    const TWO: [(&str, &str); 2] = [("0123456789ab", "web"), ("0123ffffffff", "data")];

    #[rstest]
    #[case::name("web", "0123456789ab")]
    #[case::id("0123ffffffff", "0123ffffffff")]
    #[case::beginning("0123f", "0123ffffffff")]
    fn container_is_found_by(#[case] name: &str, #[case] id: &str) {
        let host = host(&TWO);

        assert_eq!(host.containers.find(name).unwrap().record.id.as_str(), id);
    }

    #[rstest]
    #[case::unknown(
        "nobody",
        "there is no container 'nobody' (coracle ps -a lists those there are)"
    )]
    #[case::empty("", "there is no container '' (coracle ps -a lists those there are)")]
    #[case::two("0123", "'0123' is the beginning of more than one container's id")]
    #[case::path(
        "../web",
        "there is no container '../web' (coracle ps -a lists those there are)"
    )]
    fn container_is_not_found_by(#[case] name: &str, #[case] expected: &str) {
        let host = host(&TWO);

        assert_eq!(
            host.containers.find(name).unwrap_err().to_string(),
            expected
        );
    }

    #[test]
    fn container_without_a_runner_does_not_run_whatever_its_record_says() {
        let host = host(&TWO);

        assert_eq!(host.containers.find("web").unwrap().state, State::Lost);
    }

    #[test]
    fn container_runs_while_its_lock_is_held() {
        let host = host(&TWO);
        let mut found = host.containers.find("web").unwrap();
        let lock = File::open(&found.directories.container).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        found.look_again();

        assert!(found.state.is_alive());
        drop(lock);
        found.look_again();
        assert_eq!(found.state, State::Lost);
    }
}
