// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks: each has an event loop on a thread of its own, since its I/O is waited for there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use coracle_devices::block::{Block, DiskError, DiskFile, SerialError};
use thiserror::Error;

use crate::config::Disk;
use crate::ending::Ending;
use crate::event_loop::EventLoop;
use crate::filters::Filter;
use crate::{EventLoopError, Exit, Fault};

/// A disk that cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskSetupError {
    /// Its file cannot be used.
    #[error(transparent)]
    File(#[from] DiskError),
    /// Its serial number is wrong.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// Its event loop cannot be made.
    #[error("its event loop cannot be set up")]
    EventLoop(#[from] EventLoopError),
}

/// A disk, and the event loop that is to serve it.
pub(super) fn make(
    disk: Disk<OwnedFd>,
    ending: &Arc<Ending>,
) -> Result<(Block, EventLoop), DiskSetupError> {
    let file = DiskFile::new(File::from(disk.file), disk.read_only)?;
    let device = Block::new(file, &disk.serial)?;
    Ok((device, EventLoop::new(Arc::clone(ending))?))
}

/// The threads that serve disks. Dropping them ends the machine, if it has not ended, and waits for what they do.
pub(crate) struct DiskThreads {
    threads: Vec<JoinHandle<()>>,
    ending: Arc<Ending>,
}

impl DiskThreads {
    /// Serves each of `loops` on a thread of its own until the machine ends, confined by `filter`.
    ///
    /// # Errors
    ///
    /// The host's reason not to start a thread.
    pub(crate) fn start(
        loops: Vec<EventLoop>,
        filter: Option<Filter>,
        ending: Arc<Ending>,
    ) -> std::io::Result<Self> {
        let filter = filter.map(Arc::new);
        let mut threads = Self {
            threads: Vec::with_capacity(loops.len()),
            ending: Arc::clone(&ending),
        };
        for (index, mut event_loop) in loops.into_iter().enumerate() {
            let (filter, ending) = (filter.clone(), Arc::clone(&ending));
            let thread = Builder::new()
                .name(format!("disk {index}"))
                .spawn(move || {
                    let confined = filter.map_or(Ok(()), |filter| filter.apply());
                    let served = match confined {
                        Ok(()) => event_loop.serve(),
                        Err(source) => Err(Fault::ConfineDisk { index, source }),
                    };
                    if let Err(fault) = served {
                        ending.report(Err(fault));
                    }
                })?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        self.ending.report(Ok(Exit::Stopped));
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
