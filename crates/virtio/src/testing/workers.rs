// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workers without threads.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_manager::{EventManager, SubscriberId, SubscriberOps};

use crate::{Worker, WorkerError, WorkerId, Workers};

/// Workers that run only while a test says so, on the test's thread.
pub struct LocalWorkers {
    state: Mutex<State>,
}

struct State {
    events: EventManager<Worker>,
    running: BTreeMap<u64, SubscriberId>,
    next_id: u64,
}

impl LocalWorkers {
    /// No workers yet.
    ///
    /// # Panics
    ///
    /// If the process is out of descriptors.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                events: EventManager::new().expect("the process is out of descriptors"),
                running: BTreeMap::new(),
                next_id: 0,
            }),
        }
    }

    /// Lets the workers handle the events that are pending now, and says how many these were.
    /// It does not wait.
    ///
    /// # Panics
    ///
    /// If the host fails to say which events are pending.
    pub fn run(&self) -> usize {
        self.state()
            .events
            .run_with_timeout(0)
            .expect("epoll on a descriptor of our own")
    }

    /// How many workers were started and not stopped.
    #[must_use]
    pub fn running(&self) -> usize {
        self.state().running.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LocalWorkers {
    fn default() -> Self {
        Self::new()
    }
}

impl Workers for LocalWorkers {
    fn start(&self, worker: Worker) -> Result<WorkerId, WorkerError> {
        let mut state = self.state();
        let id = state.next_id;
        let subscriber = state.events.add_subscriber(worker);
        state.running.insert(id, subscriber);
        state.next_id += 1;
        Ok(WorkerId(id))
    }

    fn stop(&self, id: WorkerId) {
        let mut state = self.state();
        if let Some(subscriber) = state.running.remove(&id.0) {
            // Gone already is as good.
            let _ = state.events.remove_subscriber(subscriber);
        }
    }
}

impl fmt::Debug for LocalWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalWorkers")
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}
