// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The containers of a host, and how each fares in truth.

use std::fs;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::places::Pair;
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
    /// Its record cannot be read.
    Damaged {
        /// Why.
        reason: String,
        /// Whether it runs all the same.
        alive: bool,
    },
}

impl State {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
            Self::Lost => "lost",
            Self::Damaged { .. } => "damaged",
        }
    }

    /// Whether there is a process for it.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Running { .. } => true,
            Self::Exited { .. } | Self::Lost => false,
            Self::Damaged { alive, .. } => *alive,
        }
    }

    /// What a record says of a container that has a runner, or has none.
    fn of(status: &Status, alive: bool) -> Self {
        match status.clone() {
            Status::Exited { at, status, reason } => Self::Exited { at, status, reason },
            _ if !alive => Self::Lost,
            Status::Starting { runner } => Self::Starting { runner },
            Status::Running { since, runner } => Self::Running { since, runner },
        }
    }
}

impl Containers {
    pub fn new(places: Places) -> Self {
        Self { places }
    }

    /// Every container, the youngest first. What has no record is no container yet, or no more.
    pub fn list(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for id in self.places.ids()? {
            found.extend(self.look_at(&id)?);
        }
        found.sort_by_key(|found| std::cmp::Reverse(found.record.created));
        Ok(found)
    }

    /// The container of this id, of this name, or whose id alone begins so.
    pub fn find(&self, name: &str) -> Result<Found> {
        if let Ok(id) = name.parse()
            && let Some(found) = self.look_at(&id)?
        {
            return Ok(found);
        }
        let (mut named, mut beginning) = (None, Vec::new());
        for found in self.list()? {
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

    fn look_at(&self, id: &Id) -> Result<Option<Found>> {
        let directories = self.places.directories(id);
        let look =
            look(&directories, id).with_context(|| format!("cannot look at container {id}"))?;
        Ok(look.map(|(record, state, is_held)| Found {
            record,
            directories,
            state,
            is_held,
        }))
    }
}

impl Found {
    /// How it fares by now; as before, where that cannot be told. Of one that is gone, it is not known.
    pub fn look_again(&mut self) {
        match look(&self.directories, &self.record.id) {
            Ok(Some((record, state, is_held))) => {
                self.record = record;
                self.state = state;
                self.is_held = is_held;
            }
            Ok(None) => {
                self.state = State::Lost;
                self.is_held = matches!(self.directories.is_run(), Ok(Some(true)));
            }
            Err(_) => {}
        }
    }
}

/// What is known of a container, how it fares, and whether a process is at it; nothing if there is none.
fn look(directories: &Pair, id: &Id) -> Result<Option<(Record, State, bool)>> {
    // The lock first: who holds none has written its last.
    let Some(alive) = directories.is_run()? else {
        return Ok(None);
    };
    let record = Record::read(&directories.container).and_then(|record| match record {
        Some(record) if record.id != *id => bail!("its record is of container {}", record.id),
        record => Ok(record),
    });
    Ok(match record {
        Ok(None) => None,
        Ok(Some(mut record)) => {
            let state = State::of(&record.status, alive);
            if !alive {
                // Nobody is there. One that has ended and is still held has its ports, too.
                record.addresses.clear();
                record.ports.clear();
            }
            Some((record, state, alive))
        }
        Err(error) => {
            let metadata = fs::symlink_metadata(&directories.container)?;
            let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let reason = format!("{error:#}");
            let record = Record::unreadable(id.clone(), Time::at(changed));
            Some((record, State::Damaged { reason, alive }, alive))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use coracle_network::NetworkConfig;
    use rstest::rstest;
    use rustix::fs::{FlockOperation, flock};

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

    #[rstest]
    #[case::cut_off("{\"id\": \"0123", "EOF while parsing")]
    #[case::of_a_later_version("{\"id\": \"0123456789ab\", \"is\": \"frozen\"}", "missing field")]
    #[case::of_another("", "its record is of container 0123ffffffff")]
    fn container_whose_record_cannot_be_read_is_damaged(#[case] text: &str, #[case] reason: &str) {
        let host = host(&TWO);
        let [own, other] = TWO.map(|(id, _)| {
            host.containers
                .places
                .containers
                .join(id)
                .join("record.json")
        });
        match text {
            "" => fs::copy(&other, &own).map(drop).unwrap(),
            text => fs::write(&own, text).unwrap(),
        }

        let found = host.containers.find("0123456").unwrap();

        assert_eq!(host.containers.list().unwrap().len(), 2);
        assert!(!found.state.is_alive());
        assert_eq!(found.record.id.as_str(), "0123456789ab");
        let State::Damaged { reason: told, .. } = found.state else {
            panic!("{found:?}");
        };
        assert!(told.contains(reason), "{told}");
    }

    #[test]
    fn directory_without_a_record_is_no_container() {
        let host = host(&TWO);
        fs::remove_file(
            host.containers
                .places
                .containers
                .join(TWO[0].0)
                .join("record.json"),
        )
        .unwrap();

        assert_eq!(host.containers.list().unwrap().len(), 1);
        assert!(host.containers.find("web").is_err());
    }

    #[test]
    fn containers_that_cannot_be_listed_are_no_empty_list() {
        let host = host(&[]);
        fs::write(&host.containers.places.containers, "no directory").unwrap();

        let error = host.containers.list().unwrap_err();

        assert!(error.to_string().starts_with("cannot list /"), "{error}");
        assert!(host.containers.find("web").is_err());
    }

    #[test]
    fn host_that_never_had_a_container_has_none() {
        assert!(host(&[]).containers.list().unwrap().is_empty());
    }

    #[test]
    fn container_without_a_runner_does_not_run_whatever_its_record_says() {
        let host = host(&TWO);

        assert_eq!(host.containers.find("web").unwrap().state, State::Lost);
    }

    #[test]
    fn container_runs_and_is_reached_while_its_lock_is_held() {
        let host = host(&TWO);
        let mut found = host.containers.find("web").unwrap();
        let mut record = running("0123456789ab", "web");
        record.ports = vec!["8080:80/tcp".to_owned()];
        record.write(&found.directories.container).unwrap();
        let lock = File::open(&found.directories.container).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        found.look_again();

        assert!(found.state.is_alive());
        assert_eq!(found.record.ports, ["8080:80/tcp"]);
        // Not by closing it alone: what another test starts just now has it for a moment.
        flock(&lock, FlockOperation::Unlock).unwrap();
        found.look_again();
        assert_eq!(found.state, State::Lost);
        assert!(found.record.ports.is_empty());
    }
}
