// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run keeps on the host's file systems, and what becomes of it on every way out.
//!
//! When a run ends, its own process clears up after it, or, if it is killed, its [`Janitor`]; if both are killed, the
//! next run, which sweeps up what has no lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_network::{NetworkConfig, remove_leftovers};
use coracle_oci::own_directory;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::janitor::Janitor;
use super::removal::remove_tree;
use super::{Id, Name, Record, Status};
use crate::cli::Directories;
use crate::log;

/// Age from which a directory without a lock is nobody's: a run that is just being made has one for a moment.
const SETTLED: Duration = Duration::from_secs(60);

/// Where the things of containers are.
#[derive(Clone, Debug)]
pub struct Places {
    /// What outlives a run: `<root>/containers`.
    pub containers: PathBuf,
    /// What is gone with it.
    pub state: PathBuf,
    /// The image store.
    pub store: PathBuf,
    /// How networks are made, and where it is kept which.
    pub network: NetworkConfig,
}

impl Places {
    pub fn of(directories: &Directories) -> Self {
        Self {
            containers: directories.root.join("containers"),
            state: directories.state.clone(),
            store: directories.root.clone(),
            network: NetworkConfig {
                state: directories.root.join("network"),
                ..NetworkConfig::default()
            },
        }
    }

    /// The two directories of one container.
    pub fn directories(&self, id: &Id) -> Pair {
        Pair {
            container: self.containers.join(id.as_str()),
            state: self.state.join(id.as_str()),
        }
    }

    /// Makes them, and sweeps up after runs that ended without being able to.
    fn prepare(&self) -> Result<()> {
        // Nothing of a time before the host's start tells of itself in the state directory.
        let all = !self.state.exists();
        for directory in [&self.store, &self.containers, &self.state] {
            own_directory::make(directory)?;
        }
        self.sweep(all);
        Ok(())
    }

    /// Clears up after dead runs: those that left a state directory, or `all` that there are. Whatever has not a
    /// container's id, or is no directory, is none of ours.
    fn sweep(&self, all: bool) {
        let mut ids = ids_in(&self.state);
        if all {
            ids.extend(ids_in(&self.containers));
        }
        for id in ids {
            let pair = self.directories(&id);
            let witness = [&pair.container, &pair.state]
                .into_iter()
                .find_map(|directory| open_directory(directory));
            let Some(lock) = witness.filter(is_settled) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if let Err(error) = self.clear(&id) {
                log::tell(format_args!(
                    "coracle: cannot clear up after container {id}: {error:#}"
                ));
            }
        }
    }

    /// Removes what was only there for a container's run, which has ended.
    ///
    /// # Errors
    ///
    /// The first that could not be removed; the rest is, as far as it can be.
    pub fn clear(&self, id: &Id) -> Result<()> {
        let network = remove_leftovers(id.as_str(), &self.network);
        self.directories(id).clear()?;
        Ok(network?)
    }
}

/// The directories of one container.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What outlives its run.
    pub container: PathBuf,
    /// What is gone with it.
    pub state: PathBuf,
}

impl Pair {
    /// Waits until nobody else removes what is here; whoever has the turn may, until it is dropped.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be locked.
    pub fn take_turn(&self) -> std::io::Result<Option<File>> {
        let turn = open_directory(&self.state);
        if let Some(directory) = &turn {
            flock(directory, FlockOperation::LockExclusive)?;
        }
        Ok(turn)
    }

    /// Removes what is only there for a run, which has ended; all, if the container is one that goes with its end, or
    /// has never come to run. The state directory comes last: it tells that there is something to clear up.
    ///
    /// # Errors
    ///
    /// Those of the file system, with as much removed as can be.
    fn clear(&self) -> std::io::Result<()> {
        let _turn = self.take_turn()?;
        let kept = Record::read(&self.container)
            .is_ok_and(|record| !record.remove && record.status != Status::Starting);
        let first = if kept {
            remove_tree(&self.container.join("work"))
        } else {
            remove_tree(&self.container)
        };
        first.and_then(|()| remove_tree(&self.state))
    }
}

/// The directories of one run, under the run's lock; dropping it clears up.
pub struct RunDirectory {
    id: Id,
    pair: Pair,
    places: Places,
    janitor: Janitor,
    _lock: File,
}

impl RunDirectory {
    /// Makes the directories of a new run, under an id that no other run has.
    ///
    /// To be called while the process has one thread: it forks.
    pub fn create(places: &Places) -> Result<Self> {
        places.prepare()?;
        let id = Id::random()?;
        let pair = places.directories(&id);
        let janitor = Janitor::start(id.clone(), places.clone())?;
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
            _lock: lock,
        })
    }

    /// Gives the container its name, by its first record; two have never the same.
    pub fn announce(&self, name: Option<&Name>, record: &Record) -> Result<()> {
        let places = &self.places;
        let Some(name) = name else {
            return record.write(&self.pair.container);
        };
        let all = File::open(&places.containers)
            .with_context(|| format!("cannot open {}", places.containers.display()))?;
        flock(&all, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", places.containers.display()))?;
        for id in ids_in(&places.containers) {
            let other = Record::read(&places.directories(&id).container);
            if other.is_ok_and(|other| other.name == name.as_str()) {
                bail!(
                    "the name '{}' is that of container {id} (remove it with: coracle rm {0})",
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
        if self.janitor.dismiss() {
            return;
        }
        // Everything that is mounted is mounted below the share. Whatever stayed would be emptied with the
        // directory, a volume of the user's included.
        let share = self.share();
        let cleared = crate::run::detach(&share).and_then(|()| self.pair.clear());
        if let Err(error) = cleared {
            log::tell(format_args!(
                "coracle: cannot clear up after container {}: {error}",
                self.id
            ));
        }
    }
}

/// The ids by which a directory's own directories are named.
pub(super) fn ids_in(directory: &Path) -> Vec<Id> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// A directory, not through a link.
pub(super) fn open_directory(path: &Path) -> Option<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok().map(File::from)
}

fn is_settled(directory: &File) -> bool {
    directory
        .metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > SETTLED))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use rstest::rstest;

    use super::super::record::tests::running;
    use super::*;

    const ID: &str = "0123456789ab";

    /// Places of a test's own.
    struct Host {
        places: Places,
        _directory: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let places = Places {
                containers: directory.path().join("root/containers"),
                state: directory.path().join("state"),
                store: directory.path().join("root"),
                network: NetworkConfig {
                    state: directory.path().join("root/network"),
                    ..NetworkConfig::default()
                },
            };
            fs::create_dir_all(&places.containers).unwrap();
            fs::create_dir_all(&places.state).unwrap();
            Self {
                places,
                _directory: directory,
            }
        }

        /// The old directories of a run under `name`, with a file in each.
        fn run(&self, name: &str) -> Pair {
            let pair = Pair {
                container: self.places.containers.join(name),
                state: self.places.state.join(name),
            };
            for directory in [&pair.container, &pair.state] {
                fs::create_dir(directory).unwrap();
                fs::write(directory.join("file"), "x").unwrap();
                age(directory);
            }
            pair
        }
    }

    fn age(directory: &Path) {
        let old = SystemTime::now() - Duration::from_secs(3600);
        File::open(directory).unwrap().set_modified(old).unwrap();
    }

    #[test]
    fn what_a_dead_run_left_is_swept_up() {
        let host = Host::new();
        let pair = host.run(ID);

        host.places.sweep(false);

        assert!(!pair.container.exists());
        assert!(!pair.state.exists());
    }

    #[test]
    fn two_that_clear_up_do_so_one_after_the_other() {
        let host = Host::new();
        let pair = host.run(ID);
        let turn = pair.take_turn().unwrap();
        let other = std::thread::spawn({
            let pair = pair.clone();
            move || pair.clear()
        });
        std::thread::sleep(Duration::from_millis(200));
        let was_left_alone = pair.container.join("file").exists();

        drop(turn);

        other.join().unwrap().unwrap();
        assert!(was_left_alone);
        assert!(!pair.container.exists() && !pair.state.exists());
    }

    #[test]
    fn container_that_was_killed_is_kept_without_what_was_for_its_run() {
        let host = Host::new();
        let pair = host.run(ID);
        fs::create_dir(pair.container.join("work")).unwrap();
        running(ID, "web").write(&pair.container).unwrap();
        age(&pair.container);

        host.places.sweep(false);

        assert!(pair.container.join("file").exists());
        assert!(!pair.container.join("work").exists());
        assert!(!pair.state.exists());
    }

    #[rstest]
    #[case::never_ran(|record: &mut Record| record.status = Status::Starting)]
    #[case::goes_with_its_end(|record: &mut Record| record.remove = true)]
    fn container_that_nobody_wants_is_removed(#[case] change: fn(&mut Record)) {
        let host = Host::new();
        let pair = host.run(ID);
        let mut record = running(ID, "web");
        change(&mut record);
        record.write(&pair.container).unwrap();
        age(&pair.container);

        host.places.sweep(false);

        assert!(!pair.container.exists());
    }

    #[test]
    fn after_a_start_of_the_host_all_that_is_dead_is_swept_up() {
        let host = Host::new();
        let pair = host.run(ID);
        fs::remove_dir_all(&host.places.state).unwrap();

        host.places.prepare().unwrap();

        assert!(!pair.container.exists());
    }

    #[test]
    fn what_a_living_run_has_stays() {
        let host = Host::new();
        let pair = host.run(ID);
        let lock = File::open(&pair.container).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        host.places.sweep(true);

        assert!(pair.container.join("file").exists());
        assert!(pair.state.join("file").exists());
    }

    #[test]
    fn what_is_just_being_made_stays() {
        let host = Host::new();
        let pair = host.run(ID);
        fs::write(pair.container.join("young"), "x").unwrap();

        host.places.sweep(true);

        assert!(pair.container.exists());
    }

    #[rstest]
    #[case::word("precious")]
    #[case::shorter("0123456789a")]
    #[case::longer("0123456789abc")]
    #[case::no_digits("0123456789AB")]
    fn what_is_no_runs_stays(#[case] name: &str) {
        let host = Host::new();
        let pair = host.run(name);

        host.places.sweep(true);

        assert!(pair.container.join("file").exists());
        assert!(pair.state.join("file").exists());
    }

    #[test]
    fn link_with_the_name_of_a_run_is_not_followed() {
        let host = Host::new();
        let precious = host.run("precious");
        symlink(&precious.container, host.places.containers.join(ID)).unwrap();
        symlink(&precious.state, host.places.state.join(ID)).unwrap();

        host.places.sweep(true);

        assert!(precious.container.join("file").exists());
        assert!(precious.state.join("file").exists());
    }

    #[test]
    fn name_is_given_once() {
        let host = Host::new();
        let pair = host.run(ID);
        running(ID, "web").write(&pair.container).unwrap();
        let name: Name = "web".parse().unwrap();
        let directory = RunDirectory::create(&host.places).unwrap();
        let mut record = running(directory.id().as_str(), "web");

        let error = directory.announce(Some(&name), &record).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the name 'web' is that of container 0123456789ab (remove it with: coracle rm web)"
        );
        record.name = "other".to_owned();
        let other = "other".parse().unwrap();
        directory.announce(Some(&other), &record).unwrap();
    }
}
