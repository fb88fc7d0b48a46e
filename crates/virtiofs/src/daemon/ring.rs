// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue whose kicks cannot end the thread that waits for them.
//!
//! That thread belongs to `vhost-user-backend`, and ends, without a word to anybody, when a kick cannot be read. A
//! virtual machine that resets the device can exchange a kick between the moment in which the old one woke the
//! thread and that in which the thread reads: there is nothing to be read then, and nothing wrong.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A [`VringMutex`] that reads kicks in its own way.
#[derive(Clone)]
pub(super) struct Ring {
    inner: VringMutex,
    /// Why the last kick could not be read, until somebody asks.
    broken_kick: Arc<Mutex<Option<io::Error>>>,
}

impl Ring {
    /// What is wrong with the kick, if anything is.
    pub(super) fn take_broken_kick(&self) -> Option<io::Error> {
        self.broken_kick
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState>;
}

impl VringT<Memory> for Ring {
    /// Says whether the queue is to be looked at. A kick that is gone leads to one look too many; one that is broken
    /// as well, so that whoever looks finds [`take_broken_kick`](Ring::take_broken_kick).
    fn read_kick(&self) -> io::Result<bool> {
        match self.inner.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.inner.get_ref().is_enabled())
            }
            Err(error) => {
                *self
                    .broken_kick
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(error);
                Ok(true)
            }
            enabled => enabled,
        }
    }

    // The rest is as it was.

    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        Ok(Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            broken_kick: Arc::default(),
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState> {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState> {
        self.inner.get_mut()
    }

    fn add_used(&self, head: u16, length: u32) -> Result<(), Error> {
        self.inner.add_used(head, length)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        self.inner.set_queue_info(table, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.inner.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.inner.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.inner.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
