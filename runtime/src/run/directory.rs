// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run keeps on the host's file systems, and its removal on every way out.
//!
//! A run has two directories of its own: `<root>/runs/<id>` holds its writable layer and is
//! locked for as long as the run lives; `<state>/<id>` holds sockets and mount points. They are
//! removed by the run itself, or, if it is killed, by its [`Janitor`]; if both are killed, by the
//! next run, which sweeps up every directory whose lock is free.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::janitor::Janitor;
use super::mounts;
use super::removal::remove_tree;
use crate::cli::Directories;

/// The directories of one run; dropping it removes them.
pub struct RunDirectory {
    id: String,
    layer: PathBuf,
    state: PathBuf,
    janitor: Janitor,
    _lock: File,
}

impl RunDirectory {
    /// Makes the directories of a new run, under an id that no other run has, and sweeps up after
    /// runs that ended without being able to.
    ///
    /// To be called while the process has one thread: it forks.
    pub fn create(directories: &Directories) -> Result<Self> {
        let runs = directories.root.join("runs");
        for directory in [&runs, &directories.state] {
            make_directory(directory)?;
        }
        sweep(&runs, &directories.state);

        let id = new_id()?;
        let layer = runs.join(&id);
        let state = directories.state.join(&id);
        let janitor = Janitor::start(vec![state.clone(), layer.clone()], directories.root.clone())?;
        make_directory(&layer)?;
        let lock =
            File::open(&layer).with_context(|| format!("cannot open {}", layer.display()))?;
        flock(&lock, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", layer.display()))?;
        for directory in [
            &layer.join("upper"),
            &layer.join("work"),
            &state,
            &state.join("vsock"),
            &state.join("share"),
        ] {
            make_directory(directory)?;
        }
        Ok(Self {
            id,
            layer,
            state,
            janitor,
            _lock: lock,
        })
    }

    /// The run's name, unique on this host: 12 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Upper directory of the writable layer.
    pub fn upper(&self) -> PathBuf {
        self.layer.join("upper")
    }

    /// Work directory of the writable layer.
    pub fn work(&self) -> PathBuf {
        self.layer.join("work")
    }

    /// The tree that is shared with the guest.
    pub fn share(&self) -> PathBuf {
        self.state.join("share")
    }

    /// The directory of the guest's vsock sockets; the VMM sees nothing else of the host.
    pub fn vsock(&self) -> PathBuf {
        self.state.join("vsock")
    }

    /// The socket on which the file-sharing role is reached until it has been connected to.
    pub fn fs_socket(&self) -> PathBuf {
        self.state.join("fs.sock")
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
        if let Err(error) = mounts::detach(&self.share()) {
            eprintln!(
                "coracle: cannot unmount {}, so it is not removed: {error}",
                self.share().display()
            );
            return;
        }
        for directory in [&self.state, &self.layer] {
            if let Err(error) = remove_tree(directory) {
                eprintln!("coracle: cannot remove {}: {error}", directory.display());
            }
        }
    }
}

/// Removes what dead runs left. A directory is locked while its run lives.
fn sweep(runs: &Path, state: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for entry in entries.flatten() {
        let directory = entry.path();
        let Ok(lock) = File::open(&directory) else {
            continue;
        };
        // A run that is just being made has an unlocked directory for a moment: younger ones than
        // a minute are left to a later sweep.
        let settled = lock
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| {
                modified
                    .elapsed()
                    .is_ok_and(|age| age > Duration::from_secs(60))
            });
        if !settled || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        for stale in [&state.join(entry.file_name()), &directory] {
            if let Err(error) = remove_tree(stale) {
                eprintln!(
                    "coracle: cannot remove {}, left by an earlier run: {error}",
                    stale.display()
                );
            }
        }
    }
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))?;
    // Whoever owns a parent could swap what is inside: only our own user may.
    let owner = fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .uid();
    anyhow::ensure!(
        owner == rustix::process::geteuid().as_raw(),
        "the directory {} belongs to user {owner}; give it to the user that runs coracle",
        path.display()
    );
    Ok(())
}

fn new_id() -> Result<String> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot get random bytes for the run's name")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
