// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where containers are, and what becomes of what nobody runs any more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use coracle_network::{
    NetworkConfig, NetworkError, acknowledge, give_up, leftovers, remove_leftovers, unheard,
};
use coracle_oci::own_directory;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use tracing::debug;

use super::removal::remove_tree;
use super::{Id, Record};
use crate::config::Config;
use crate::lifeline::Lifeline;
use crate::log;
use crate::printable::printable;
use crate::until::until;

/// How long the kernel may take to close what a killed run had open.
const DYING: Duration = Duration::from_secs(5);
/// How long a run waits for a sweep.
const MOMENT: Duration = Duration::from_millis(200);
/// How long others may take to look how a container fares.
const LOOKING: Duration = Duration::from_secs(1);

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
    /// The same, where networks are made as `config` says.
    pub fn with_networks(self, config: &Config) -> Self {
        Self {
            network: config.network.clone(),
            ..self
        }
    }

    /// The two directories of one container.
    pub fn directories(&self, id: &Id) -> Pair {
        Pair {
            container: self.containers.join(id.as_str()),
            state: self.state.join(id.as_str()),
        }
    }

    /// The ids of the containers that there are, and of what was one.
    pub fn ids(&self) -> Result<Vec<Id>> {
        ids_in(&self.containers)
    }

    /// Makes the places, and has swept up what runs left that ended without being able to.
    ///
    /// To be called while the process has one thread: it forks.
    pub(super) fn prepare(&self) -> Result<()> {
        for directory in [&self.store, &self.containers, &self.state] {
            own_directory::make(directory)?;
        }
        if let Err(error) = self.sweep() {
            let what = "cannot clear up what is left of other containers";
            log::tell_failure(&error.context(what));
        }
        Ok(())
    }

    /// Clears up after dead runs, and tells what there is to say of that.
    fn sweep(&self) -> Result<()> {
        let dead = self.dead()?;
        if !dead.is_empty() {
            log::prompt(printable(&self.clear_beside(&dead)?));
        }
        for id in &dead {
            self.tell_unheard(id, Heard::Now);
        }
        Ok(())
    }

    /// Tells what of a container's network could not be removed, if nobody has heard of it yet.
    pub(super) fn tell_unheard(&self, id: &Id, heard: Heard) {
        if let Some(line) = self.unheard(id) {
            log::tell(printable(&line));
            if heard == Heard::Now {
                self.heard(id);
            }
        }
    }

    /// That, in a line.
    fn unheard(&self, id: &Id) -> Option<String> {
        let left = unheard(id.as_str(), &self.network)
            .inspect_err(|error| {
                debug!("what is left of container {id}'s network is not known: {error}")
            })
            .ok()
            .flatten()?;
        let goes = match left.is_given_up {
            true => String::new(),
            false => format!("not all of its network {}: ", goes(id)),
        };
        Some(format!(
            "coracle: cannot clear up after container {id}: {goes}{}",
            left.reason
        ))
    }

    /// Until it is dropped, no container comes into being or is named but by whoever has it.
    pub(super) fn lock(&self) -> Result<File> {
        let what = || format!("cannot lock {}", self.containers.display());
        let all = File::open(&self.containers).with_context(what)?;
        flock(&all, FlockOperation::LockExclusive).with_context(what)?;
        Ok(all)
    }

    /// Clears up after dead runs, and gives what there is to say of that, but for their networks. What takes longer than a
    /// moment is done by a process beside this one, which nobody waits for: it is nothing of this run's.
    fn clear_beside(&self, dead: &[Id]) -> Result<String> {
        let sweeper = Lifeline::fork(&[], |run| {
            // SAFETY: this process has one thread.
            let is_child = unsafe { libc::fork() } == 0;
            if is_child {
                self.clear_all(dead, run);
            }
        })?;
        // It has left the work to its own child, which is nobody's to wait for.
        sweeper.wait();
        Ok(sweeper.listen(Some(MOMENT)))
    }

    /// Clears up after dead containers, and says what cannot be.
    fn clear_all(&self, dead: &[Id], mut said: impl Write) {
        for id in dead {
            if let Err(error) = self.clear(id) {
                let what = format!("coracle: cannot clear up after container {id}: {error:#}\n");
                // Whoever it is said to may have gone: then the next sweep says it.
                let _ = said.write_all(what.as_bytes());
            }
        }
    }

    /// The containers that nobody runs and of which more is there than is kept. Whatever has not a container's id, or
    /// is no directory, is none of ours.
    fn dead(&self) -> Result<Vec<Id>> {
        let of_networks = leftovers(&self.network)?;
        let mut ids: BTreeSet<Id> = of_networks.iter().flat_map(|id| id.parse()).collect();
        ids.extend(ids_in(&self.state)?);
        let containers = self.ids()?.into_iter();
        ids.extend(containers.filter(|id| self.directories(id).is_unfinished()));
        // Whoever makes one has locked it by the end of this; ids are never used again, so who has none by then is dead.
        let _all = self.lock()?;
        ids.retain(|id| matches!(self.directories(id).is_run(), Ok(None | Some(false))));
        Ok(ids.into_iter().collect())
    }

    /// Removes what was only there for a container's run, which has ended; all of it, if it is one that goes with its
    /// end, or has never come to run.
    ///
    /// # Errors
    ///
    /// The first that could not be removed; the rest is, as far as it can be. What is left of a network is no error: it
    /// stays remembered until the next sweep, with its reason for whoever [talks to somebody](Self::tell_unheard).
    pub fn clear(&self, id: &Id) -> Result<()> {
        let pair = self.directories(id);
        let _turn = pair.take_turn()?;
        let network = self.remove_network(id);
        pair.clear()?;
        match network {
            Err(NetworkError::StillLeft { .. }) => Ok(()),
            network => network.with_context(|| format!("not all of its network {}", goes(id))),
        }
    }

    /// Somebody has heard what of a container's network cannot be removed: nobody is told again.
    fn heard(&self, id: &Id) {
        if let Err(error) = acknowledge(id.as_str(), &self.network) {
            debug!("it will be told again: {error}");
        }
    }

    /// Removes all there is of a container that nobody runs.
    ///
    /// # Errors
    ///
    /// As those of [`Self::clear`].
    pub fn remove(&self, id: &Id) -> Result<()> {
        let pair = self.directories(id);
        let _turn = pair.take_turn()?;
        let network = self.remove_network(id);
        let _claim = pair.claim()?;
        pair.remove()?;
        let left = match network {
            Ok(()) => return Ok(()),
            Err(NetworkError::StillLeft { source, .. }) => *source,
            Err(error) => error,
        };
        self.heard(id);
        let removed = match left {
            NetworkError::PluginGone { .. } => "it is removed".to_owned(),
            _ => format!("it is removed; not all of its network {}", goes(id)),
        };
        Err(left).context(removed)
    }

    /// Forgets what is left of the network of a container that is gone, if it cannot be removed. Says whether there was
    /// any.
    ///
    /// # Errors
    ///
    /// Why it cannot be forgotten.
    pub fn give_up_network(&self, id: &str) -> Result<bool> {
        let id: Id = match id.parse() {
            Ok(id) if !Record::is_in(&self.directories(&id).container) => id,
            _ => return Ok(false),
        };
        let remembered = leftovers(&self.network)?;
        if !remembered.iter().any(|other| other == id.as_str()) {
            return Ok(false);
        }
        if let Some(error) = give_up(id.as_str(), &self.network)? {
            let error = Error::new(error);
            log::tell_failure(&error.context(format!("what is left of the network of {id} stays")));
        }
        Ok(true)
    }

    fn remove_network(&self, id: &Id) -> Result<(), NetworkError> {
        let remembered = leftovers(&self.network)?;
        if !remembered.iter().any(|other| other == id.as_str()) {
            return Ok(());
        }
        // What a killed run had open is closed piece by piece: what tells of its end before this lock.
        let is_free = |removed: &_| !matches!(removed, Err(NetworkError::InUse { .. }));
        let remove = || remove_leftovers(id.as_str(), &self.network);
        until(DYING, remove, is_free)
    }
}

/// Whether somebody reads what is told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Now,
    /// It is left where somebody may look some time.
    Later,
}

/// What becomes of a network that cannot be removed.
fn goes(id: &Id) -> String {
    format!("can be removed (later runs try again; to give that up: coracle rm {id})")
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
    fn take_turn(&self) -> io::Result<Option<File>> {
        let turn = open_directory(&self.state)?;
        if let Some(directory) = &turn {
            flock(directory, FlockOperation::LockExclusive)?;
        }
        Ok(turn)
    }

    /// Waits until nobody looks at the container, and keeps its files from being copied until it is dropped.
    fn claim(&self) -> Result<Option<File>> {
        let claim = open_directory(&self.container)?;
        if let Some(directory) = &claim {
            let lock = || flock(directory, FlockOperation::NonBlockingLockExclusive);
            match until(LOOKING, lock, |locked| *locked != Err(Errno::WOULDBLOCK)) {
                Err(Errno::WOULDBLOCK) => {
                    bail!("another process is at it (does coracle cp copy its files?)")
                }
                locked => locked?,
            }
        }
        Ok(claim)
    }

    /// Whether somebody runs the container, or clears up after it; nothing if there is none.
    pub(super) fn is_run(&self) -> io::Result<Option<bool>> {
        let directory = open_directory(&self.container)?;
        // Shared, as whoever copies files has it.
        let is_run = |directory| flock(directory, FlockOperation::NonBlockingLockShared).is_err();
        Ok(directory.as_ref().map(is_run))
    }

    /// Whether it has what no container has that is kept: a run's own, or no record.
    fn is_unfinished(&self) -> bool {
        self.work().exists() || !Record::is_in(&self.container)
    }

    /// The state directory comes last: it tells that there is something to clear up.
    fn clear(&self) -> io::Result<()> {
        // What cannot be read, a later version's or a damaged one, is not ours to judge.
        let kept = Record::read(&self.container)
            .map_or(true, |record| record.is_some_and(|record| record.is_kept()));
        // Whoever copies its files has them locked.
        let upper = open_directory(&self.container.join("upper"))?;
        let is_free = |upper| flock(upper, FlockOperation::NonBlockingLockExclusive).is_ok();
        let is_free = upper.as_ref().is_none_or(is_free);
        match (kept, is_free) {
            (true, true) => remove_tree(&self.work())?,
            // It is the copy's by now.
            (true, false) => {}
            (false, true) => return self.remove(),
            (false, false) => return Err(io::Error::other("its files are being copied")),
        }
        remove_tree(&self.state)
    }

    /// The record goes first: what is only half there afterwards is no container.
    fn remove(&self) -> io::Result<()> {
        if let Some(directory) = open_directory(&self.container)? {
            Record::remove(&directory)?;
        }
        remove_tree(&self.container)?;
        remove_tree(&self.state)
    }

    /// Work directory of the writable layer.
    fn work(&self) -> PathBuf {
        self.container.join("work")
    }
}

/// The ids by which a directory's own directories are named; none where there is no such directory.
fn ids_in(directory: &Path) -> Result<Vec<Id>> {
    let what = || match rustix::process::geteuid().is_root() {
        true => format!("cannot list {}", directory.display()),
        false => format!("cannot list {} (run this as root)", directory.display()),
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(what)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.with_context(what)?;
        let id = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        ids.extend(id.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())));
    }
    Ok(ids)
}

/// A directory, not through a link; nothing where there is none.
fn open_directory(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory.into())),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use rstest::rstest;

    use super::super::RunDirectory;
    use super::super::Status;
    use super::super::record::tests::running;
    use super::*;
    use crate::testing::{alone, write_script};

    const ID: &str = "0123456789ab";

    fn id() -> Id {
        ID.parse().unwrap()
    }

    /// Places of a test's own.
    pub struct Host {
        pub places: Places,
        _directory: tempfile::TempDir,
    }

    impl Host {
        pub fn new() -> Self {
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

        /// Sweeps up, however long that takes.
        fn sweep(&self) {
            self.places
                .clear_all(&self.places.dead().unwrap(), Vec::new());
        }

        /// The directories of a run under `name`, with a file in each.
        pub fn run(&self, name: &str) -> Pair {
            let pair = Pair {
                container: self.places.containers.join(name),
                state: self.places.state.join(name),
            };
            for directory in [&pair.container, &pair.state] {
                fs::create_dir(directory).unwrap();
                fs::write(directory.join("file"), "x").unwrap();
            }
            pair
        }
    }

    #[test]
    fn what_a_dead_run_left_is_swept_up() {
        let host = Host::new();
        let pair = host.run(ID);

        host.sweep();

        assert!(!pair.container.exists());
        assert!(!pair.state.exists());
    }

    #[test]
    fn two_that_clear_up_do_so_one_after_the_other() {
        let host = Host::new();
        let pair = host.run(ID);
        let turn = pair.take_turn().unwrap();
        let other = thread::spawn({
            let places = host.places.clone();
            move || places.clear(&id())
        });
        thread::sleep(Duration::from_millis(200));
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

        host.sweep();

        assert!(pair.container.join("file").exists());
        assert!(!pair.container.join("work").exists());
        assert!(!pair.state.exists());
    }

    #[rstest]
    #[case::never_ran(|record: &mut Record| record.status = Status::Starting { runner: 1 })]
    #[case::goes_with_its_end(|record: &mut Record| record.remove = true)]
    fn container_that_nobody_wants_is_removed(#[case] change: fn(&mut Record)) {
        let host = Host::new();
        let pair = host.run(ID);
        let mut record = running(ID, "web");
        change(&mut record);
        record.write(&pair.container).unwrap();

        host.sweep();

        assert!(!pair.container.exists());
    }

    #[test]
    fn after_a_start_of_the_host_all_that_is_dead_is_swept_up() {
        alone(
            after_a_start_of_the_host_all_that_is_dead_is_swept_up,
            || {
                let host = Host::new();
                let pair = host.run(ID);
                fs::remove_dir_all(&host.places.state).unwrap();

                host.places.prepare().unwrap();

                let is_swept = || !pair.container.exists();
                assert!(until(Duration::from_secs(10), is_swept, |swept| *swept));
            },
        );
    }

    #[test]
    fn what_cannot_be_swept_up_is_told_once() {
        alone(what_cannot_be_swept_up_is_told_once, || {
            let (host, _) = host_with_plugin();
            host.run(ID);
            remember_stubborn_network(&host);
            let unheard = || host.places.unheard(&id());

            // A killed run's janitor tries, and is heard by nobody.
            host.places.clear(&id()).unwrap();
            let untold = unheard();
            host.places.prepare().unwrap();
            let told = unheard();
            host.places.clear(&id()).unwrap();
            let tried_again = unheard();

            let untold = untold.unwrap();
            let expected = format!(
                "coracle: cannot clear up after container {ID}: not all of its network can be removed \
                 (later runs try again; to give that up: coracle rm {ID}): CNI plugin \"stubborn\""
            );
            assert!(untold.starts_with(&expected), "{untold}");
            assert_eq!((told, tried_again), (None, None));
        });
    }

    /// What is heard of it is another failure.
    #[test]
    fn network_of_a_living_machine_has_nothing_to_be_heard() {
        let (host, _) = host_with_plugin();
        let machine = remember_stubborn_network(&host);
        let alive = File::create(machine.join("alive")).unwrap();
        flock(&alive, FlockOperation::LockExclusive).unwrap();

        host.places.heard(&id());

        flock(&alive, FlockOperation::Unlock).unwrap();
        host.places.clear(&id()).unwrap();
        assert!(host.places.unheard(&id()).is_some());
    }

    #[test]
    fn long_sweep_is_not_waited_for() {
        alone(long_sweep_is_not_waited_for, || {
            let (host, told) = host_with_plugin();
            let plugins = host.places.store.join("plugins");
            let script = r#"#!/bin/sh
cd $(dirname $0)
until [ -e go_on ] || [ ! -e slow ]; do sleep 0.05; done
exec ./tell"#;
            write_script(&plugins.join("slow"), script);
            remember_network(&host, "slow");

            host.places.sweep().unwrap();

            assert!(!told.exists());
            fs::write(plugins.join("go_on"), "").unwrap();
            let is_told = || told.exists();
            assert!(until(Duration::from_secs(20), is_told, |told| *told));
        });
    }

    #[test]
    fn what_a_living_run_has_stays() {
        let host = Host::new();
        let pair = host.run(ID);
        let lock = File::open(&pair.container).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        host.sweep();

        assert!(pair.container.join("file").exists());
        assert!(pair.state.join("file").exists());
    }

    #[test]
    fn what_is_just_being_made_is_not_looked_at() {
        let host = Host::new();
        let making = host.places.lock().unwrap();
        let pair = host.run(ID);
        let other = thread::spawn({
            let places = host.places.clone();
            move || places.dead().unwrap()
        });
        thread::sleep(Duration::from_millis(200));
        let lock = File::open(&pair.container).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        drop(making);

        assert!(other.join().unwrap().is_empty());
    }

    #[rstest]
    #[case::word("precious")]
    #[case::shorter("0123456789a")]
    #[case::longer("0123456789abc")]
    #[case::no_digits("0123456789AB")]
    fn what_is_no_runs_stays(#[case] name: &str) {
        let host = Host::new();
        let pair = host.run(name);

        host.sweep();

        assert!(pair.container.join("file").exists());
        assert!(pair.state.join("file").exists());
    }

    #[test]
    fn link_with_the_name_of_a_run_is_not_followed() {
        let host = Host::new();
        let precious = host.run("precious");
        symlink(&precious.container, host.places.containers.join(ID)).unwrap();
        symlink(&precious.state, host.places.state.join(ID)).unwrap();

        host.sweep();

        assert!(precious.container.join("file").exists());
        assert!(precious.state.join("file").exists());
    }

    /// What the network is remembered by if its plugin is `kind`, which fails where there is none of that name.
    pub fn remember_network(host: &Host, kind: &str) -> PathBuf {
        remember_network_of(host, ID, kind)
    }

    fn remember_network_of(host: &Host, id: &str, kind: &str) -> PathBuf {
        let machine = host.places.network.state.join("machines").join(id);
        let list = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "lan",
            "plugins": [{"type": kind, "own": "configuration"}],
        });
        let record = serde_json::json!({
            "cni": [{"list": list, "interface": "eth0", "capabilities": {}, "result": null}],
        });
        fs::create_dir_all(&machine).unwrap();
        fs::write(machine.join("record"), record.to_string()).unwrap();
        machine
    }

    /// A host with a CNI plugin that writes down what it is told.
    pub fn host_with_plugin() -> (Host, PathBuf) {
        let mut host = Host::new();
        let plugins = host.places.store.join("plugins");
        let told = plugins.join("told");
        fs::create_dir(&plugins).unwrap();
        let script = format!(
            "#!/bin/sh\necho $CNI_COMMAND >> {0}\ncat >> {0}\n",
            told.display()
        );
        write_script(&plugins.join("tell"), &script);
        host.places.network.cni_plugins = vec![plugins];
        (host, told)
    }

    #[rstest]
    #[case::by_the_removal_of_the_container(|host: &Host| host.places.remove(&id()).unwrap())]
    #[case::by_what_clears_up(|host: &Host| host.places.clear(&id()).unwrap())]
    #[case::by_a_sweep(|host: &Host| host.sweep())]
    #[case::by_a_sweep_when_the_container_is_gone(|host: &Host| {
        let pair = host.places.directories(&id());
        pair.remove().unwrap();
        host.sweep();
    })]
    fn network_of_a_killed_run_is_removed(#[case] act: fn(&Host)) {
        let (host, told) = host_with_plugin();
        host.run(ID);
        let machine = remember_network(&host, "tell");

        act(&host);

        let told = fs::read_to_string(told).unwrap();
        assert!(
            told.starts_with("DEL\n{") && told.contains("configuration"),
            "{told}"
        );
        assert!(!machine.exists());
    }

    /// What is left of a network whose plugin fails.
    fn remember_stubborn_network(host: &Host) -> PathBuf {
        remember_stubborn_network_of(host, ID)
    }

    fn remember_stubborn_network_of(host: &Host, id: &str) -> PathBuf {
        let plugin = host.places.network.cni_plugins[0].join("stubborn");
        write_script(&plugin, "#!/bin/sh\nexit 1\n");
        remember_network_of(host, id, "stubborn")
    }

    #[test]
    fn what_a_run_cannot_remove_of_its_network_is_told_at_its_end() {
        alone(
            what_a_run_cannot_remove_of_its_network_is_told_at_its_end,
            || {
                for (heard, is_still_unheard) in [(Heard::Now, false), (Heard::Later, true)] {
                    let (host, _) = host_with_plugin();
                    let directory = RunDirectory::create(&host.places, heard).unwrap();
                    let id = directory.id().clone();
                    remember_stubborn_network_of(&host, id.as_str());

                    drop(directory);

                    assert_eq!(host.places.unheard(&id).is_some(), is_still_unheard);
                }
            },
        );
    }

    #[test]
    fn network_that_cannot_be_removed_is_told_and_not_forgotten() {
        let (host, told) = host_with_plugin();
        let pair = host.run(ID);
        let machine = remember_stubborn_network(&host);

        let error = host.places.remove(&id()).unwrap_err();

        let error = format!("{error:#}");
        assert!(
            error.contains("stubborn") && error.contains("coracle rm 0123456789ab"),
            "{error}"
        );
        assert!(!pair.container.exists());
        assert!(machine.exists());
        remember_network(&host, "tell");
        host.sweep();
        assert!(told.exists() && !machine.exists());
    }

    #[test]
    fn network_of_a_container_that_is_gone_is_given_up() {
        let (host, _) = host_with_plugin();
        let pair = host.run(ID);
        let machine = remember_stubborn_network(&host);
        running(ID, "web").write(&pair.container).unwrap();

        let with_container = host.places.give_up_network(ID).unwrap();
        let removed = host.places.remove(&id());
        let without = host.places.give_up_network(ID).unwrap();
        let again = host.places.give_up_network(ID).unwrap();

        assert!(removed.is_err() && !machine.exists());
        assert_eq!((with_container, without, again), (false, true, false));
    }

    #[test]
    fn container_whose_record_cannot_be_read_is_kept_until_it_is_removed() {
        let host = Host::new();
        let pair = host.run(ID);
        fs::create_dir(pair.container.join("work")).unwrap();
        fs::write(pair.container.join("record.json"), "{}").unwrap();

        host.sweep();

        assert!(pair.container.join("file").exists());
        assert!(!pair.container.join("work").exists() && !pair.state.exists());
        host.places.remove(&id()).unwrap();
        assert!(!pair.container.exists());
    }

    #[test]
    fn container_that_was_left_by_a_sweep_is_swept_by_a_later_one() {
        let host = Host::new();
        let pair = host.run(ID);
        let mut record = running(ID, "web");
        record.remove = true;
        record.write(&pair.container).unwrap();
        fs::create_dir(pair.container.join("work")).unwrap();
        fs::remove_dir_all(&pair.state).unwrap();
        fs::create_dir(pair.container.join("upper")).unwrap();
        let lock = File::open(pair.container.join("upper")).unwrap();
        flock(&lock, FlockOperation::LockShared).unwrap();
        host.sweep();
        let was_left = pair.container.exists();
        // Not by closing it alone: what another test starts just now has it for a moment.
        flock(&lock, FlockOperation::Unlock).unwrap();

        host.sweep();

        assert!(was_left && !pair.container.exists());
    }

    #[test]
    fn look_at_a_container_is_waited_for_by_its_removal() {
        let host = Host::new();
        let pair = host.run(ID);
        let look = File::open(&pair.container).unwrap();
        flock(&look, FlockOperation::LockShared).unwrap();
        let other = thread::spawn({
            let places = host.places.clone();
            move || places.remove(&id())
        });
        thread::sleep(Duration::from_millis(200));

        drop(look);

        other.join().unwrap().unwrap();
        assert!(!pair.container.exists());
    }

    #[test]
    fn container_whose_files_are_copied_is_not_removed() {
        let host = Host::new();
        let pair = host.run(ID);
        let copy = File::open(&pair.container).unwrap();
        flock(&copy, FlockOperation::LockShared).unwrap();

        let error = host.places.remove(&id()).unwrap_err();

        assert!(error.to_string().contains("coracle cp"), "{error}");
        assert!(pair.container.join("file").exists());
    }

    #[test]
    fn container_into_which_files_are_copied_keeps_what_that_needs() {
        let host = Host::new();
        let pair = host.run(ID);
        for directory in ["work", "upper"] {
            fs::create_dir(pair.container.join(directory)).unwrap();
        }
        running(ID, "web").write(&pair.container).unwrap();
        let copy = File::open(pair.container.join("upper")).unwrap();
        flock(&copy, FlockOperation::LockExclusive).unwrap();

        host.places.clear(&id()).unwrap();

        assert!(pair.container.join("work").exists());
    }
}
