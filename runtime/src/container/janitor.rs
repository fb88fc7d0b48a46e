// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that outlives a killed run, to clear up after it.
//!
//! It is forked before the run has threads, mounts or guests, waits for the other end of a pipe
//! to close, and then clears up. It shares nothing with the run that could keep a
//! caller waiting: no standard stream, no terminal, no process group.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use coracle_oci::store::Store;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Id, Places};
use crate::descriptors::{close_all_but, ignore_signals};

/// The run's handle on its janitor.
pub struct Janitor {
    process: Pid,
    lifeline: Option<OwnedFd>,
}

impl Janitor {
    /// Forks a janitor for the run of a container, and for what a killed run left half unpacked in the image store.
    ///
    /// To be called while the process has one thread.
    pub fn start(id: Id, places: Places) -> Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        // SAFETY: the process has one thread (the caller's promise), so the child may do whatever
        // the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error())
                .context("cannot fork the process that cleans up"),
            0 => {
                let cleared = wait_and_clear(read, &id, &places);
                // SAFETY: ends this process at once; what the parent registered for its own exit
                // must not run here.
                unsafe { libc::_exit(i32::from(!cleared)) }
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

    /// Has the janitor clear up and waits until it is gone; says whether all is.
    pub fn dismiss(&mut self) -> bool {
        drop(self.lifeline.take());
        let ended = waitpid(Some(self.process), WaitOptions::empty());
        matches!(ended, Ok(Some((_, status))) if status.exit_status() == Some(0))
    }
}

/// The janitor's life: block until the run's end of the pipe closes, then clear up. Says whether all is done.
fn wait_and_clear(read: OwnedFd, id: &Id, places: &Places) -> bool {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    close_all_but(&[read.as_fd()]);
    ignore_signals();
    let _ = std::fs::File::from(read).read(&mut [0]);
    Store::sweep(&places.store);
    // Whatever cannot be removed is left to the run, or to the next run's sweep.
    places.clear(id).is_ok()
}
