// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that outlives a killed run, to remove its files.
//!
//! It is forked before the run has threads, mounts or guests, waits for the other end of a pipe
//! to close, and then removes what it was told. It shares nothing with the run that could keep a
//! caller waiting: no standard stream, no terminal, no process group.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_oci::store::Store;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::removal::remove_tree;

/// The run's handle on its janitor.
pub struct Janitor {
    process: Pid,
    lifeline: Option<OwnedFd>,
}

impl Janitor {
    /// Forks a janitor for `directories`, removed in this order when the run is gone, and for what a killed run left
    /// half unpacked in the image store at `store`.
    ///
    /// To be called while the process has one thread.
    pub fn start(directories: Vec<PathBuf>, store: PathBuf) -> Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        // SAFETY: the process has one thread (the caller's promise), so the child may do whatever
        // the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error())
                .context("cannot fork the process that cleans up"),
            0 => {
                let removed = wait_and_remove(read, &directories, &store);
                // SAFETY: ends this process at once; what the parent registered for its own exit
                // must not run here.
                unsafe { libc::_exit(i32::from(!removed)) }
            }
            process => {
                let process = Pid::from_raw(process).context("fork gave no process id")?;
                Ok(Self {
                    process,
                    lifeline: Some(write),
                })
            }
        }
    }

    /// Has the janitor remove the directories and waits until it is gone; says whether they are.
    pub fn dismiss(&mut self) -> bool {
        drop(self.lifeline.take());
        let ended = waitpid(Some(self.process), WaitOptions::empty());
        matches!(ended, Ok(Some((_, status))) if status.exit_status() == Some(0))
    }
}

/// The janitor's life: block until the run's end of the pipe closes, then remove. Says whether all is gone.
fn wait_and_remove(read: OwnedFd, directories: &[PathBuf], store: &Path) -> bool {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let keep = u32::try_from(read.as_raw_fd()).unwrap_or(0);
    // SAFETY: closes every descriptor but the pipe's; this process uses no other from here on.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0u32, keep.saturating_sub(1), 0u32);
        libc::syscall(
            libc::SYS_close_range,
            keep.saturating_add(1),
            u32::MAX,
            0u32,
        );
    }
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
    ] {
        // SAFETY: sets a disposition that runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = std::fs::File::from(read).read(&mut [0]);
    Store::sweep(store);
    // Whatever cannot be removed is left to the run, or to the next run's sweep.
    let failures = directories
        .iter()
        .filter(|directory| remove_tree(directory).is_err());
    failures.count() == 0
}
