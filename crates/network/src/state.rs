// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is remembered on disk, for the case that the process that should remove something is killed.
//!
//! ```text
//! STATE/lock                  taken while addresses are chosen, and while what all machines share comes or goes
//! STATE/machines/ID/alive     locked for as long as the machine's network is attached: the kernel drops the lock
//! STATE/machines/ID/record    JSON: what there is to remove, and why it cannot be
//! STATE/machines/ID/heard     there once somebody has heard of that
//! ```
//!
//! What the kernel removes by itself (taps, addresses, routes, published ports) is in no record: the kernel knows it better.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::attachment::Rest;
use crate::cni::CniAttachment;
use crate::error::NetworkError;
use crate::port::PortMapping;
use crate::request::NetworkConfig;
use crate::{attachment, name};

/// Whoever holds the common lock holds it for milliseconds; more means that it hangs.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A record larger than this is none of ours.
const MAX_RECORD: u64 = 16 << 20;

/// Name of the file that says that somebody has heard what cannot be removed.
const HEARD: &str = "heard";

/// Mode bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// What there is to remove of one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Ports of the host that lead into it, to say who has them.
    pub(crate) ports: Vec<PortMapping>,
    /// CNI networks, in the order in which they were added.
    pub(crate) cni: Vec<CniAttachment>,
    /// Ports of Open vSwitch bridges.
    pub(crate) ovs: Vec<OvsPort>,
    /// Why it could not all be removed, if somebody has tried.
    failed: Option<String>,
    /// What lacks will not come back.
    is_hopeless: bool,
}

/// A port that Open vSwitch's database holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OvsPort {
    pub(crate) bridge: String,
    pub(crate) port: String,
}

impl Record {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        record.cni.iter().try_for_each(CniAttachment::validate)?;
        let names = record.ovs.iter().flat_map(|ovs| [&ovs.bridge, &ovs.port]);
        for name in names {
            name::check_interface(name).map_err(|error| error.to_string())?;
        }
        Ok(record)
    }
}

/// A file that is locked.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it is not enough: a process that another thread starts just now has the descriptor for a moment.
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!("a lock cannot be given back: {error}");
        }
    }
}

/// The common lock, while it is held.
pub(crate) struct CommonLock {
    _lock: Lock,
}

impl CommonLock {
    pub(crate) fn take(config: &NetworkConfig) -> Result<Self, NetworkError> {
        make_directory(&config.state)?;
        let path = config.state.join("lock");
        let file = open_lock(&path)?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        while !try_lock(&file).map_err(failed(&path, "lock it"))? {
            if Instant::now() >= deadline {
                return Err(NetworkError::LockTimeout {
                    path,
                    seconds: LOCK_DEADLINE.as_secs(),
                });
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(Self { _lock: Lock(file) })
    }
}

/// A machine's directory, while its lock is held.
#[derive(Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    _alive: Lock,
}

impl Machine {
    /// Takes the id. What an earlier run of it left is in the record.
    pub(crate) fn take(config: &NetworkConfig, id: &str) -> Result<Self, NetworkError> {
        name::check_id(id)?;
        // So that nobody removes the directory between its making and its locking.
        let _common = CommonLock::take(config)?;
        let directory = machines(config).join(id);
        make_directory(&directory)?;
        let machine = Self::lock(directory, id)?;
        machine.unhear()?;
        Ok(machine)
    }

    /// Takes the id if there is anything of it.
    pub(crate) fn take_existing(
        config: &NetworkConfig,
        id: &str,
    ) -> Result<Option<Self>, NetworkError> {
        name::check_id(id)?;
        let directory = machines(config).join(id);
        if !directory.exists() {
            return Ok(None);
        }
        let _common = CommonLock::take(config)?;
        if !directory.exists() {
            return Ok(None);
        }
        Self::lock(directory, id).map(Some)
    }

    fn lock(directory: PathBuf, id: &str) -> Result<Self, NetworkError> {
        let path = directory.join("alive");
        let alive = open_lock(&path)?;
        if !try_lock(&alive).map_err(failed(&path, "lock it"))? {
            return Err(NetworkError::InUse { id: id.to_owned() });
        }
        Ok(Self {
            directory,
            _alive: Lock(alive),
        })
    }

    pub(crate) fn read(&self) -> Result<Record, NetworkError> {
        read_record(&self.directory)
    }

    /// Remembers what is about to be made, before it is made.
    pub(crate) fn write(&self, record: &Record) -> Result<(), NetworkError> {
        let path = self.directory.join("record");
        let bytes = serde_json::to_vec(record).map_err(|error| NetworkError::State {
            path: path.clone(),
            action: "write it",
            source: error.into(),
        })?;
        // What others hold for us must not be forgotten in a power failure; the kernel forgets what it holds in one.
        let must_last = !record.cni.is_empty() || !record.ovs.is_empty();
        replace_file(&path, &bytes, must_last).map_err(failed(&path, "write it"))
    }

    /// Keeps what could not be removed for another try, with the reason; gives what to tell of it.
    pub(crate) fn keep(self, id: &str, mut record: Record, error: NetworkError) -> NetworkError {
        let was_hopeless = record.is_hopeless;
        // The kernel has those back.
        record.ports.clear();
        record.failed = Some(error.with_causes());
        record.is_hopeless = matches!(error, NetworkError::PluginGone { .. });
        let kept = self.write(&record).and_then(|()| match was_hopeless {
            // That is news.
            false if record.is_hopeless => self.unhear(),
            _ => Ok(()),
        });
        if let Err(error) = kept {
            tracing::debug!("{error}");
        }
        NetworkError::StillLeft {
            id: id.to_owned(),
            source: Box::new(error),
        }
    }

    /// Whatever was heard is of another time.
    fn unhear(&self) -> Result<(), NetworkError> {
        let path = self.directory.join(HEARD);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&path, "remove it")(error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the machine: there is nothing left to remove.
    pub(crate) fn forget(self, _common: &CommonLock) -> Result<(), NetworkError> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&self.directory, "remove it")(error))
            }
            _ => Ok(()),
        }
    }
}

/// The ids of which something is remembered: of machines that are attached, and of such as were killed.
///
/// # Errors
///
/// The state directory cannot be read.
pub fn leftovers(config: &NetworkConfig) -> Result<Vec<String>, NetworkError> {
    let directory = machines(config);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&directory, "list it")(error)),
    };
    let mut ids: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|id| name::check_id(id).is_ok())
        .collect();
    ids.sort();
    Ok(ids)
}

/// Removes what a machine whose process was killed left behind. Succeeds where there is nothing.
///
/// # Errors
///
/// [`NetworkError::InUse`] where the process lives. [`NetworkError::StillLeft`] where something could not be removed: it
/// stays remembered, and its reason is among the [`unheard`], so that this can be tried again.
pub fn remove_leftovers(id: &str, config: &NetworkConfig) -> Result<(), NetworkError> {
    remove(id, config, Rest::Kept)?.map_or(Ok(()), Err)
}

/// Why a machine's network could not all be removed, though it was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unheard {
    /// What was in the way.
    pub reason: String,
    /// What lacks will not come back: it is forgotten once somebody has heard of it.
    pub is_given_up: bool,
}

/// Why the network of a machine that is no more could not all be removed, if nobody has heard of it yet.
///
/// # Errors
///
/// The id is none, or what is remembered of it cannot be read.
pub fn unheard(id: &str, config: &NetworkConfig) -> Result<Option<Unheard>, NetworkError> {
    name::check_id(id)?;
    let directory = machines(config).join(id);
    if directory.join(HEARD).exists() {
        return Ok(None);
    }
    let record = read_record(&directory)?;
    Ok(record.failed.map(|reason| Unheard {
        reason,
        is_given_up: record.is_hopeless,
    }))
}

/// Notes that somebody has heard what could not be removed of a machine, if that was so.
///
/// # Errors
///
/// Why it cannot be noted.
pub fn acknowledge(id: &str, config: &NetworkConfig) -> Result<(), NetworkError> {
    name::check_id(id)?;
    let directory = machines(config).join(id);
    // With it nobody forgets the machine, or begins it anew.
    let common = CommonLock::take(config)?;
    let record = read_record(&directory)?;
    if record.failed.is_none() {
        return Ok(());
    }
    if record.is_hopeless {
        return match Machine::lock(directory, id) {
            Ok(machine) => machine.forget(&common),
            // Somebody tries again just now, or has begun it anew.
            Err(NetworkError::InUse { .. }) => Ok(()),
            Err(error) => Err(error),
        };
    }
    let path = directory.join(HEARD);
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    made.map(drop).map_err(failed(&path, "make it"))
}

/// As [`remove_leftovers`], for the last time: what cannot be removed is forgotten. Gives why it could not be.
///
/// # Errors
///
/// [`NetworkError::InUse`] where the process lives; otherwise why there is no forgetting it.
pub fn give_up(id: &str, config: &NetworkConfig) -> Result<Option<NetworkError>, NetworkError> {
    remove(id, config, Rest::Forgotten)
}

fn remove(
    id: &str,
    config: &NetworkConfig,
    rest: Rest,
) -> Result<Option<NetworkError>, NetworkError> {
    match Machine::take_existing(config, id)? {
        Some(machine) => attachment::remove(config, id, machine, rest),
        None => attachment::remove_shared(config).map(|()| None),
    }
}

/// Whether any machine is attached.
pub(crate) fn is_any_attached(
    config: &NetworkConfig,
    _common: &CommonLock,
) -> Result<bool, NetworkError> {
    for id in leftovers(config)? {
        let path = machines(config).join(id).join("alive");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(&path, flags, Mode::empty()).map(File::from) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(&path, "open it")(error.into())),
            // Nobody else takes it without the common lock.
            Ok(alive) => match try_lock(&alive).map_err(failed(&path, "lock it"))? {
                true => drop(Lock(alive)),
                false => return Ok(true),
            },
        }
    }
    Ok(false)
}

/// Removes what all machines whose processes were killed left behind, and gives the ids of those that there were.
///
/// # Errors
///
/// The first thing that could not be removed, when all was tried.
pub fn sweep(config: &NetworkConfig) -> Result<Vec<String>, NetworkError> {
    let mut removed = Vec::new();
    let mut first_error = None;
    for id in leftovers(config)? {
        match remove_leftovers(&id, config) {
            Ok(()) => removed.push(id),
            Err(NetworkError::InUse { .. }) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    let shared = attachment::remove_shared(config);
    match first_error {
        Some(error) => Err(error),
        None => shared.map(|()| removed),
    }
}

/// Which machine has a port of the host, by the records.
pub(crate) fn owner_of_port(
    config: &NetworkConfig,
    is_it: impl Fn(&PortMapping) -> bool,
) -> Option<String> {
    leftovers(config).ok()?.into_iter().find(|id| {
        read_record(&machines(config).join(id)).is_ok_and(|record| record.ports.iter().any(&is_it))
    })
}

fn machines(config: &NetworkConfig) -> PathBuf {
    config.state.join("machines")
}

/// What there is to remove. A record that a power failure cut off, or that is none of ours, is no reason never to start a
/// machine of that id again: the kernel has forgotten what it held by then.
fn read_record(directory: &Path) -> Result<Record, NetworkError> {
    let path = directory.join("record");
    let mut bytes = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        file => file
            .and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes))
            .map_err(failed(&path, "read it"))?,
    };
    Ok(Record::parse(&bytes).unwrap_or_else(|reason| {
        tracing::error!(
            "{}: {reason}: what CNI plugins and Open vSwitch hold for this machine stays",
            path.display()
        );
        Record::default()
    }))
}

/// Writes a file anew, whole or not at all; where it must last, a power failure is no exception.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], must_last: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(
        &temporary,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?);
    file.write_all(bytes)?;
    if must_last {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)
}

/// Makes a directory for its owner alone where it is missing. One that is there must be this user's, and closed to others'
/// writing: what is in it says which programs are run.
fn make_directory(path: &Path) -> Result<(), NetworkError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(path, "make it"))?;
    let metadata = fs::metadata(path).map_err(failed(path, "look at it"))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let reason = if owner != rustix::process::geteuid().as_raw() {
        format!("it belongs to user {owner}")
    } else if mode & OTHERS_WRITE != 0 {
        format!("others may write to it (mode {mode:04o}): chmod go-w")
    } else {
        return Ok(());
    };
    Err(failed(path, "trust it")(io::Error::other(reason)))
}

fn open_lock(path: &Path) -> Result<File, NetworkError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|error| failed(path, "open it")(error.into()))
}

/// Whether the lock was free.
fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::State {
        path,
        action,
        source,
    }
}
