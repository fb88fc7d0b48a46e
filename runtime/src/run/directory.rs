// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run keeps on the host's file systems, and its removal on every way out.
//!
//! A run has two directories of its own: `<root>/runs/<id>` holds its writable layer and is
//! locked for as long as the run lives; `<state>/<id>` holds sockets and mount points. They are
//! removed by the run itself, or, if it is killed, by its [`Janitor`]; if both are killed, by the
//! next run, which sweeps up every directory whose lock is free.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_oci::own_directory;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::janitor::Janitor;
use super::mounts;
use super::removal::remove_tree;
use crate::cli::Directories;

/// Bytes of a run's name, of two hexadecimal digits each.
const ID_BYTES: usize = 6;

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
        for directory in [&directories.root, &runs, &directories.state] {
            own_directory::make(directory)?;
        }
        sweep(&runs, &directories.state);

        let id = new_id()?;
        let layer = runs.join(&id);
        let state = directories.state.join(&id);
        let janitor = Janitor::start(vec![state.clone(), layer.clone()], directories.root.clone())?;
        own_directory::make(&layer)?;
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
            own_directory::make(directory)?;
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

/// Removes what dead runs left. A directory is locked while its run lives. Whatever has not a run's name, or is no
/// directory, is none of ours.
fn sweep(runs: &Path, state: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for entry in entries.flatten() {
        let directory = entry.path();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some(lock) = is_id(&entry.file_name())
            .then(|| open(&directory, flags, Mode::empty()).ok())
            .flatten()
            .map(File::from)
        else {
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

/// Whether a name could be that of a run.
fn is_id(name: &OsStr) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    name.len() == 2 * ID_BYTES && name.as_encoded_bytes().iter().all(digit)
}

fn new_id() -> Result<String> {
    let mut bytes = [0u8; ID_BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot get random bytes for the run's name")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use rstest::rstest;

    use super::*;

    /// A directory of runs with an old one under `name`, which holds a file, and a place for their states.
    fn runs(name: &str) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("runs").join(name)).unwrap();
        fs::write(place.path().join("runs").join(name).join("file"), "x").unwrap();
        age(&place.path().join("runs").join(name));
        place
    }

    fn age(directory: &Path) {
        let old = SystemTime::now() - Duration::from_secs(3600);
        File::open(directory).unwrap().set_modified(old).unwrap();
    }

    fn sweep_in(place: &tempfile::TempDir) {
        sweep(&place.path().join("runs"), &place.path().join("state"));
    }

    #[test]
    fn what_a_dead_run_left_is_swept_up() {
        let place = runs("0123456789ab");

        sweep_in(&place);

        assert!(!place.path().join("runs/0123456789ab").exists());
    }

    #[test]
    fn what_a_living_run_has_stays() {
        let place = runs("0123456789ab");
        let lock = File::open(place.path().join("runs/0123456789ab")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        sweep_in(&place);

        assert!(place.path().join("runs/0123456789ab/file").exists());
    }

    #[rstest]
    #[case::word("precious")]
    #[case::shorter("0123456789a")]
    #[case::longer("0123456789abc")]
    #[case::no_digits("0123456789AB")]
    fn what_is_no_runs_stays(#[case] name: &str) {
        let place = runs(name);

        sweep_in(&place);

        assert!(place.path().join("runs").join(name).join("file").exists());
    }

    #[test]
    fn link_with_the_name_of_a_run_is_not_followed() {
        let place = runs("precious");
        let precious = place.path().join("runs/precious");
        symlink(&precious, place.path().join("runs/0123456789ab")).unwrap();
        age(&precious);

        sweep_in(&place);

        assert!(precious.join("file").exists());
    }

    #[test]
    fn new_id_is_an_id() {
        assert!(is_id(new_id().unwrap().as_ref()));
    }
}
