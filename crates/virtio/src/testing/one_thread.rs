// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A worker on a thread, as in a VMM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, SubscriberOps};

use crate::{Worker, WorkerError, WorkerId, Workers};

/// How often the thread looks whether it is to end, in milliseconds. Wakes no worker.
const ROUND: i32 = 20;

/// Runs one worker on a thread of its own.
#[derive(Debug, Default)]
pub struct OneThread {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Workers for OneThread {
    fn start(&self, worker: Worker) -> Result<WorkerId, WorkerError> {
        let stop = Arc::clone(&self.stop);
        let thread = thread::spawn(move || {
            let mut events = EventManager::new().expect("the process is out of descriptors");
            events.add_subscriber(worker);
            while !stop.load(Ordering::Relaxed) {
                events
                    .run_with_timeout(ROUND)
                    .expect("events can be waited for");
            }
        });
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(WorkerId(0))
    }

    fn stop(&self, _: WorkerId) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            thread.join().expect("the worker does not panic");
        }
    }
}
