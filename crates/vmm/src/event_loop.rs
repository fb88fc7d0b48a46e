// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event loop: one thread that serves the queues of all devices and sees the machine end.
//!
//! vCPU threads hand it workers and take them back through a [`RemoteEndpoint`], which waits for the loop. The loop in
//! turn never waits for a vCPU: it ends first, and that answers whoever still waits for it.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_virtio::{Worker, WorkerError, WorkerId, Workers};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
    SubscriberOps,
};
use thiserror::Error;

use crate::control::Control;
use crate::ending::Ending;
use crate::{Exit, Fault};

/// Events taken from the kernel at a time: more than there are descriptors to watch, for all but a crowded vsock.
const EVENTS_AT_ONCE: usize = 64;

/// Why the event loop cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EventLoopError {
    /// The kernel's interface failed.
    #[error("events cannot be waited for")]
    Events(#[from] event_manager::Error),
    /// An eventfd cannot be made.
    #[error("an event cannot be made")]
    Event(#[source] std::io::Error),
}

/// The loop, before and while it runs.
pub(crate) struct EventLoop {
    manager: EventManager<Worker>,
    ending: Arc<Ending>,
    control: Option<Arc<Mutex<Control>>>,
}

impl EventLoop {
    /// A loop that runs until `ending` has an end.
    pub(crate) fn new(ending: Arc<Ending>) -> Result<Self, EventLoopError> {
        let manager = EventManager::new_with_capacity(EVENTS_AT_ONCE)?;
        let mut event_loop = Self {
            manager,
            ending,
            control: None,
        };
        let event = event_loop
            .ending
            .event()
            .try_clone()
            .map_err(EventLoopError::Event)?;
        // Readable once and for all: the loop looks at the end after each round.
        event_loop.watch(event, EventSet::IN, || {});
        Ok(event_loop)
    }

    /// The way for devices to have their workers run here.
    pub(crate) fn workers(&self) -> Arc<dyn Workers> {
        Arc::new(LoopWorkers {
            endpoint: self.manager.remote_endpoint(),
            running: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
        })
    }

    /// Calls `action` when one of `events` happens to the descriptor for the first time.
    pub(crate) fn watch(
        &mut self,
        descriptor: impl AsRawFd + Send + 'static,
        events: EventSet,
        action: impl FnOnce() + Send + 'static,
    ) {
        self.manager.add_subscriber(Box::new(Watcher {
            descriptor,
            events,
            action: Some(action),
            ending: Arc::clone(&self.ending),
        }));
    }

    /// Ends the machine as stopped when the other end of `peer` is closed. What it sends is ignored.
    pub(crate) fn stop_when_closed(&mut self, peer: OwnedFd) {
        let ending = Arc::clone(&self.ending);
        let events = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        self.watch(peer, events, move || ending.report(Ok(Exit::Stopped)));
    }

    /// Serves events until the machine ends, which somebody else takes note of: for the loops beside the first.
    pub(crate) fn serve(&mut self) -> Result<(), Fault> {
        while !self.ending.is_reported() {
            self.manager
                .run()
                .map_err(|error| Fault::EventLoop(error.into()))?;
        }
        Ok(())
    }

    /// Makes the loop look at what waits for the vCPUs.
    pub(crate) fn waker(&self) -> Box<dyn Fn() + Send + Sync> {
        let endpoint = self.manager.remote_endpoint();
        // Fails only when the counter is full, and then the loop is awake.
        Box::new(move || _ = endpoint.kick())
    }

    /// Serves the controlling process's requests.
    pub(crate) fn control(&mut self, control: Control) {
        let control = Arc::new(Mutex::new(control));
        self.manager.add_subscriber(Box::new(Arc::clone(&control)));
        self.control = Some(control);
    }

    /// Serves events until the machine ends.
    pub(crate) fn run(&mut self) -> Result<Exit, Fault> {
        loop {
            if let Some(ended) = self.ending.take() {
                // The cause may wait to be told still: the guest can have ended for it first. It has ended, whatever
                // comes of this.
                let _ = self.manager.run_with_timeout(0);
                return ended;
            }
            let timeout = self.advance_control();
            self.manager
                .run_with_timeout(timeout)
                .map_err(|error| Fault::EventLoop(error.into()))?;
        }
    }

    /// Goes on with the requests. How many milliseconds the loop may sleep; -1 is for ever.
    fn advance_control(&self) -> i32 {
        let control = self.control.as_ref();
        let left = control.and_then(|control| {
            control
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .advance()
        });
        left.map_or(-1, |left| {
            // Rounded up, or the loop would spin through the last millisecond.
            i32::try_from(left.as_millis()).map_or(i32::MAX, |left| left.saturating_add(1))
        })
    }
}

/// Waits for one event.
struct Watcher<D, A> {
    descriptor: D,
    events: EventSet,
    action: Option<A>,
    ending: Arc<Ending>,
}

impl<D: AsRawFd, A> Watcher<D, A> {
    fn event(&self) -> Events {
        Events::new(&self.descriptor, self.events)
    }

    fn check(&self, result: Result<(), event_manager::Error>) {
        if let Err(error) = result {
            self.ending.report(Err(Fault::EventLoop(error.into())));
        }
    }
}

impl<D: AsRawFd, A: FnOnce()> MutEventSubscriber for Watcher<D, A> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.check(ops.add(self.event()));
    }

    fn process(&mut self, _: Events, ops: &mut EventOps<'_>) {
        self.check(ops.remove(self.event()));
        if let Some(action) = self.action.take() {
            action();
        }
    }
}

/// Starts and stops workers from other threads.
struct LoopWorkers {
    endpoint: RemoteEndpoint<Worker>,
    running: Mutex<HashMap<WorkerId, SubscriberId>>,
    next: AtomicU64,
}

impl Workers for LoopWorkers {
    fn start(&self, worker: Worker) -> Result<WorkerId, WorkerError> {
        let subscriber = self
            .endpoint
            .call_blocking(move |ops| Ok(ops.add_subscriber(worker)))
            .map_err(|_: event_manager::Error| WorkerError::Ended)?;
        let id = WorkerId(self.next.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(id, subscriber);
        Ok(id)
    }

    fn stop(&self, id: WorkerId) {
        let Some(subscriber) = self.lock().remove(&id) else {
            return;
        };
        // Fails only if the loop has ended, and its workers with it.
        let _ = self
            .endpoint
            .call_blocking(move |ops| ops.remove_subscriber(subscriber).map(drop));
    }
}

impl LoopWorkers {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<WorkerId, SubscriberId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// For how long anything is waited for.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn event_loop() -> (EventLoop, Arc<Ending>) {
        let ending = Arc::new(Ending::new().unwrap());
        (EventLoop::new(Arc::clone(&ending)).unwrap(), ending)
    }

    /// Tells what it read from its event; its end of the channel goes when it is dropped.
    struct Reader {
        event: EventFd,
        read: Sender<u64>,
    }

    impl MutEventSubscriber for Reader {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.read.send(self.event.read().unwrap()).unwrap();
        }
    }

    fn reader() -> (Box<Reader>, EventFd, Receiver<u64>) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (read, told) = channel();
        let worker = Box::new(Reader {
            event: event.try_clone().unwrap(),
            read,
        });
        (worker, event, told)
    }

    #[test]
    fn loop_ends_with_what_was_reported() {
        let (mut event_loop, ending) = event_loop();
        ending.report(Ok(Exit::Reset));

        let ended = event_loop.run();

        assert!(matches!(ended, Ok(Exit::Reset)));
    }

    #[test]
    fn what_came_before_the_end_is_told() {
        let (mut event_loop, ending) = event_loop();
        let (event, (said, heard)) = (EventFd::new(EFD_NONBLOCK).unwrap(), channel());
        let watched = event.try_clone().unwrap();
        event_loop.watch(watched, EventSet::IN, move || said.send(()).unwrap());
        event.write(1).unwrap();
        ending.report(Ok(Exit::Shutdown));

        event_loop.run().unwrap();

        assert!(heard.try_recv().is_ok());
    }

    #[test]
    fn loop_ends_when_its_peer_is_gone() {
        let (mut event_loop, _ending) = event_loop();
        let (ours, theirs) = UnixStream::pair().unwrap();
        event_loop.stop_when_closed(ours.into());
        drop(theirs);

        let ended = event_loop.run();

        assert!(matches!(ended, Ok(Exit::Stopped)));
    }

    #[test]
    fn worker_runs_until_it_is_stopped() {
        let (mut event_loop, ending) = event_loop();
        let workers = event_loop.workers();
        let (worker, event, told) = reader();

        let other = thread::spawn(move || {
            let id = workers.start(worker).unwrap();
            event.write(3).unwrap();
            let seen = told.recv_timeout(DEADLINE);
            workers.stop(WorkerId(u64::MAX));
            event.write(4).unwrap();
            let seen_after_another_stopped = told.recv_timeout(DEADLINE);
            workers.stop(id);
            let after_its_stop = told.try_recv();
            ending.report(Ok(Exit::Shutdown));
            (seen, seen_after_another_stopped, after_its_stop)
        });
        event_loop.run().unwrap();

        assert_eq!(
            other.join().unwrap(),
            (Ok(3), Ok(4), Err(TryRecvError::Disconnected)),
            "it sees events, and is gone when its stop returns"
        );
    }

    #[test]
    fn starting_a_worker_after_the_end_is_refused() {
        let (event_loop, _ending) = event_loop();
        let workers = event_loop.workers();
        drop(event_loop);
        let (worker, _event, told) = reader();

        let result = workers.start(worker);

        assert!(matches!(result, Err(WorkerError::Ended)));
        assert_eq!(told.try_recv(), Err(TryRecvError::Disconnected));
    }
}
