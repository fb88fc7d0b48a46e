// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run keeps on the host's file systems, and what becomes of it on every way out.
//!
//! When a run ends, its [`Janitor`] clears up after it, as it does if the run is killed; if the janitor is, the run does
//! it itself; if both are, the next run does: it sweeps up what has no lock.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use coracle_oci::own_directory;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::janitor::{Janitor, Outcome};
use super::places::{Heard, Pair};
use super::{Id, Name, Places, Record};
use crate::log;

/// The directories of one run, under the run's lock; dropping it clears up.
pub struct RunDirectory {
    id: Id,
    pair: Pair,
    places: Places,
    janitor: Janitor,
    /// What is said of its end.
    heard: Heard,
    _lock: File,
}

impl RunDirectory {
    /// Makes the directories of a new run, under an id that no other run has.
    ///
    /// To be called while the process has one thread: it forks.
    pub fn create(places: &Places, heard: Heard) -> Result<Self> {
        places.prepare()?;
        let id = Id::random()?;
        let pair = places.directories(&id);
        let janitor = Janitor::start(id.clone(), places.clone())?;
        let _all = places.lock()?;
        own_directory::make(&pair.state)?;
        own_directory::make(&pair.container)?;
        let lock = File::open(&pair.container)
            .with_context(|| format!("cannot open {}", pair.container.display()))?;
        flock(&lock, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", pair.container.display()))?;
        for directory in [
            &pair.container.join("upper"),
            &pair.container.join("work"),
            &pair.state.join("vsock"),
            &pair.state.join("share"),
        ] {
            own_directory::make(directory)?;
        }
        Ok(Self {
            id,
            pair,
            places: places.clone(),
            janitor,
            heard,
            _lock: lock,
        })
    }

    /// Gives the container its name, by its first record; two have never the same.
    pub fn announce(&self, name: Option<&Name>, record: &Record) -> Result<()> {
        let places = &self.places;
        let Some(name) = name else {
            return record.write(&self.pair.container);
        };
        let _all = places.lock()?;
        for id in places.ids()? {
            let pair = places.directories(&id);
            let other = match Record::read(&pair.container) {
                Ok(Some(other)) if other.name == name.as_str() => other,
                _ => continue,
            };
            // One that should have gone is in nobody's way.
            let is_run = pair.is_run()? == Some(true);
            if is_run || other.is_kept() {
                let (state, force) = match is_run {
                    true => (", which runs", "--force "),
                    false => ("", ""),
                };
                bail!(
                    "the name '{0}' is that of container {id}{state} (remove it with: coracle rm {force}{0})",
                    name.as_str()
                );
            }
        }
        record.write(&self.pair.container)
    }

    pub fn id(&self) -> &Id {
        &self.id
    }

    /// What outlives the run.
    pub fn container(&self) -> &Path {
        &self.pair.container
    }

    /// Upper directory of the writable layer.
    pub fn upper(&self) -> PathBuf {
        self.pair.container.join("upper")
    }

    /// Work directory of the writable layer.
    pub fn work(&self) -> PathBuf {
        self.pair.container.join("work")
    }

    /// What is gone with the run.
    pub fn state(&self) -> &Path {
        &self.pair.state
    }

    /// The tree that is shared with the guest.
    pub fn share(&self) -> PathBuf {
        self.pair.state.join("share")
    }

    /// The directory of the guest's vsock sockets; the VMM sees nothing else of the host.
    pub fn vsock(&self) -> PathBuf {
        self.pair.state.join("vsock")
    }

    /// The socket on which the file-sharing role is reached until it has been connected to.
    pub fn fs_socket(&self) -> PathBuf {
        self.pair.state.join("fs.sock")
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // The janitor is in the host's mount namespace, where none of the run's mounts is in its way.
        let cleared = match self.janitor.dismiss() {
            Outcome::Cleared => Ok(()),
            Outcome::Failed(reason) => Err(anyhow!(reason)),
            // Everything that is mounted is mounted below the share. Whatever stayed would be emptied with the
            // directory, a volume of the user's included.
            Outcome::Killed => detach(&self.share())
                .map_err(Error::from)
                .and_then(|()| self.places.clear(&self.id)),
        };
        if let Err(error) = cleared {
            let what = format!("cannot clear up after container {}", self.id);
            log::tell_failure(&error.context(what));
        }
        self.places.tell_unheard(&self.id, self.heard);
    }
}

/// Detaches what is mounted at `point`, with all below it; nothing there is success.
fn detach(point: &Path) -> io::Result<()> {
    match unmount(point, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::tests::Host;
    use super::super::record::tests::running;
    use super::*;
    use crate::testing::alone;

    #[test]
    fn name_is_given_once() {
        alone(name_is_given_once, || {
            let host = Host::new();
            let pair = host.run("0123456789ab");
            running("0123456789ab", "web")
                .write(&pair.container)
                .unwrap();
            let name: Name = "web".parse().unwrap();
            let directory = RunDirectory::create(&host.places, Heard::Now).unwrap();
            let mut record = running(directory.id().as_str(), "web");

            let error = directory.announce(Some(&name), &record).unwrap_err();
            let lock = File::open(&pair.container).unwrap();
            flock(&lock, FlockOperation::LockExclusive).unwrap();
            let while_it_runs = directory.announce(Some(&name), &record).unwrap_err();

            assert_eq!(
                while_it_runs.to_string(),
                "the name 'web' is that of container 0123456789ab, which runs (remove it with: coracle rm --force web)"
            );
            assert_eq!(
                error.to_string(),
                "the name 'web' is that of container 0123456789ab (remove it with: coracle rm web)"
            );
            record.name = "other".to_owned();
            let other = "other".parse().unwrap();
            directory.announce(Some(&other), &record).unwrap();
        });
    }

    #[test]
    fn name_of_a_dead_container_that_should_have_gone_is_free() {
        alone(
            name_of_a_dead_container_that_should_have_gone_is_free,
            || {
                let host = Host::new();
                let directory = RunDirectory::create(&host.places, Heard::Now).unwrap();
                let pair = host.run("0123456789ab");
                let mut record = running("0123456789ab", "web");
                record.remove = true;
                record.write(&pair.container).unwrap();
                let name: Name = "web".parse().unwrap();

                directory
                    .announce(Some(&name), &running(directory.id().as_str(), "web"))
                    .unwrap();
            },
        );
    }

    #[test]
    fn nothing_stays_of_a_run_that_is_dropped() {
        alone(nothing_stays_of_a_run_that_is_dropped, || {
            let host = Host::new();
            let directory = RunDirectory::create(&host.places, Heard::Now).unwrap();
            let pair = host.places.directories(directory.id());
            let was_there = pair.container.exists() && pair.state.exists();

            drop(directory);

            assert!(was_there && !pair.container.exists() && !pair.state.exists());
        });
    }
}
