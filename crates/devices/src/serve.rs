// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the workers share: serving a queue in bounded rounds, and going out of service.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_virtio::{ActiveQueue, Chain, Interrupt, Queue, QueueError};
use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

/// A queue that is served on an event loop, one round a wake-up.
///
/// A round takes at most as many chains as the queue has entries, then gives the event loop to
/// others: a driver that publishes as fast as it is served would otherwise keep one device's
/// worker busy for ever, and with it each device on the same thread.
pub(crate) struct ServedQueue {
    queue: Queue,
    chain: Chain,
    kick: EventFd,
    left_in_round: u16,
    used_in_round: bool,
}

impl ServedQueue {
    pub(crate) fn new(active: ActiveQueue) -> Self {
        ServedQueue {
            queue: active.queue,
            chain: Chain::new(),
            kick: active.kick,
            left_in_round: 0,
            used_in_round: false,
        }
    }

    /// The event that wakes the worker.
    pub(crate) fn event(&self) -> Events {
        Events::new(&self.kick, EventSet::IN)
    }

    /// Whether this queue's kick is what woke the worker.
    pub(crate) fn is_kick(&self, events: &Events) -> bool {
        events.fd() == self.kick.as_raw_fd()
    }

    /// Takes note of a kick. Only to be called when the kick's event is ready.
    pub(crate) fn clear_kick(&self) {
        // Nothing to read means that another round took note of it.
        let _ = self.kick.read();
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self) -> Result<(), QueueError> {
        self.left_in_round = self.queue.size();
        self.used_in_round = false;
        self.queue.disable_kicks()
    }

    /// The next chain of this round, to be followed by [`finish`](Self::finish). `None`: there is
    /// no more, and the next kick tells; or the round is over, and the worker is woken again.
    pub(crate) fn next(&mut self) -> Result<Option<&Chain>, QueueError> {
        if self.left_in_round == 0 {
            return Ok(None);
        }
        // The second look is for a chain published between the first and the enabling of kicks.
        let found = self.queue.pop(&mut self.chain)?
            || (self.queue.enable_kicks()? && self.queue.pop(&mut self.chain)?);
        Ok(found.then_some(&self.chain))
    }

    /// Returns the chain that [`next`](Self::next) gave, with `written` bytes put into it.
    pub(crate) fn finish(&mut self, written: u32) -> Result<(), QueueError> {
        self.queue.add_used(self.chain.head(), written)?;
        self.left_in_round = self.left_in_round.saturating_sub(1);
        self.used_in_round = true;
        Ok(())
    }

    /// Ends this round after the chain that was finished last, whatever is left.
    pub(crate) fn cut_round_short(&mut self) {
        self.left_in_round = 0;
    }

    /// Interrupts the driver for what was finished, if it wants that: for rounds that take long.
    pub(crate) fn signal(&mut self, interrupt: &Interrupt) {
        if std::mem::take(&mut self.used_in_round) && self.queue.needs_interrupt() {
            interrupt.used_buffers();
        }
    }

    /// Ends a round: interrupts the driver if it wants that, wakes the worker if chains are left.
    pub(crate) fn end(&mut self, interrupt: &Interrupt) {
        if self.left_in_round == 0 {
            // A full counter wakes the worker as well.
            let _ = self.kick.write(1);
        }
        self.signal(interrupt);
    }
}

/// How a device leaves service after a fault that it cannot answer in its queue.
///
/// The driver is told each time (DEVICE_NEEDS_RESET, virtio 1.3, section 2.1.2). The log is told
/// once in the device's life: a guest that resets the device and breaks it again, in a loop,
/// fills no log.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    device: &'static str,
    logged: Arc<AtomicBool>,
}

impl Fault {
    pub(crate) fn new(device: &'static str) -> Self {
        Fault {
            device,
            logged: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(crate) fn raise(&self, interrupt: &Interrupt, error: &(dyn Error + 'static)) {
        interrupt.needs_reset();
        self.log(error);
    }

    /// Tells the log only: there is no driver to be told.
    pub(crate) fn log(&self, error: &(dyn Error + 'static)) {
        if !self.logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(device = self.device, error, "device needs a reset");
        }
    }
}

/// Registers `events`, all of them or an error.
pub(crate) fn watch(ops: &mut EventOps<'_>, events: &[Events]) -> Result<(), WatchError> {
    events
        .iter()
        .try_for_each(|&event| ops.add(event))
        .map_err(WatchError)
}

/// Removes `events`; those that are not registered are no matter.
pub(crate) fn unwatch(ops: &mut EventOps<'_>, events: &[Events]) {
    for &event in events {
        let _ = ops.remove(event);
    }
}

/// An event loop that does not take a worker's file descriptors.
#[derive(Debug, thiserror::Error)]
#[error("the event loop does not take the device's file descriptors")]
pub(crate) struct WatchError(#[source] event_manager::Error);

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;
    use coracle_virtio::testing::{Driver, eventfd, interrupt};

    use super::*;
    use crate::testing::{QUEUE_SIZE, memory};

    fn served() -> (ServedQueue, Driver) {
        let driver = Driver::new(&memory(), GuestAddress(0), 1 << 16, QUEUE_SIZE).unwrap();
        let queue = ServedQueue::new(ActiveQueue {
            index: 0,
            queue: driver.queue(0).unwrap(),
            kick: eventfd(),
        });
        (queue, driver)
    }

    #[test]
    fn round_ends_although_the_driver_goes_on_publishing() {
        let (mut queue, mut driver) = served();
        let head = driver.add(&[b"again"], &[]).unwrap();
        queue.begin().unwrap();

        let mut rounds = 0;
        while rounds < 2 * QUEUE_SIZE && queue.next().unwrap().is_some() {
            queue.finish(0).unwrap();
            driver.publish(head).unwrap();
            rounds += 1;
        }
        queue.end(&interrupt());

        assert_eq!(rounds, QUEUE_SIZE);
        assert_eq!(queue.kick.read().unwrap(), 1, "the worker is woken again");
    }

    #[test]
    fn empty_queue_sleeps_with_kicks_enabled() {
        let (mut queue, driver) = served();
        let interrupt = interrupt();

        queue.begin().unwrap();
        assert_eq!(driver.used_flags().unwrap(), 1, "no kicks while serving");
        assert!(queue.next().unwrap().is_none());
        queue.end(&interrupt);

        assert_eq!(driver.used_flags().unwrap(), 0);
        assert!(queue.kick.read().is_err());
        assert!(interrupt.line().read().is_err());
    }

    #[test]
    fn driver_that_wants_no_interrupt_gets_none() {
        let (mut queue, mut driver) = served();
        let interrupt = interrupt();
        driver.add(&[b"x"], &[]).unwrap();
        driver.set_avail_flags(1).unwrap();

        queue.begin().unwrap();
        queue.next().unwrap();
        queue.finish(0).unwrap();
        queue.end(&interrupt);

        assert!(interrupt.line().read().is_err());
    }
}
