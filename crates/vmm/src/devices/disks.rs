// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks: each has an event loop on a thread of its own, since its I/O is waited for there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use coracle_devices::block::{Block, DiskError, DiskFile, SerialError};
use thiserror::Error;

use crate::config::Disk;
use crate::ending::Ending;
use crate::event_loop::EventLoop;
use crate::filters::Filter;
use crate::{EventLoopError, Exit, Fault};

/// For how long the threads are waited for when the machine has ended: storage may take as long as it likes.
const END: Duration = Duration::from_secs(2);

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

/// The threads that serve disks. Dropping them ends the machine, if it has not ended, and waits a little for what they do.
/// A thread that does not end is left alone; it keeps what it uses.
pub(crate) struct DiskThreads {
    threads: Vec<JoinHandle<()>>,
    /// Each thread has the other end.
    gone: Receiver<()>,
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
        let (alive, gone) = channel();
        let mut threads = Self {
            threads: Vec::with_capacity(loops.len()),
            gone,
            ending: Arc::clone(&ending),
        };
        for (index, mut event_loop) in loops.into_iter().enumerate() {
            let (filter, ending) = (filter.clone(), Arc::clone(&ending));
            let its = alive.clone();
            let thread = Builder::new().name(format!("disk {index}")).spawn(move || {
                let confined = filter.map_or(Ok(()), |filter| filter.apply());
                let served = match confined {
                    Ok(()) => event_loop.serve(),
                    Err(source) => Err(Fault::ConfineDisk { index, source }),
                };
                if let Err(fault) = served {
                    ending.report(Err(fault));
                }
                drop((event_loop, its));
            });
            match thread {
                Ok(thread) => threads.threads.push(thread),
                Err(error) => {
                    // Those that run are waited for, and not for this end of theirs.
                    drop(alive);
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        self.ending.report(Ok(Exit::Stopped));
        let all_end = self.gone.recv_timeout(END) != Err(RecvTimeoutError::Timeout);
        for thread in self.threads.drain(..) {
            if all_end || thread.is_finished() {
                // A thread that panicked has said so.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;
    use std::time::Instant;

    use event_manager::{EventOps, Events, MutEventSubscriber};

    use super::*;

    /// Says that it is busy, and is until the other end of its channel is dropped.
    struct Hanging(Sender<()>, Receiver<()>);

    impl MutEventSubscriber for Hanging {
        fn init(&mut self, _: &mut EventOps<'_>) {
            self.0.send(()).unwrap();
            let _ = self.1.recv();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
    }

    #[test]
    fn disk_that_hangs_does_not_keep_the_machine() {
        let ending = Arc::new(Ending::new().unwrap());
        let event_loop = EventLoop::new(Arc::clone(&ending)).unwrap();
        let workers = event_loop.workers();
        let threads = DiskThreads::start(vec![event_loop], None, ending).unwrap();
        let (hangs, until) = channel();
        let (busy, is_busy) = channel();
        let worker = Box::new(Hanging(busy, until));
        let vcpu = std::thread::spawn(move || workers.start(worker).is_ok());
        is_busy.recv().unwrap();
        let begun = Instant::now();

        drop(threads);

        assert!(begun.elapsed() < 3 * END, "{:?}", begun.elapsed());
        drop(hangs);
        vcpu.join().unwrap();
    }
}
