// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device's worker: a pair of queues and the control queue, on the event loop.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use coracle_virtio::{ActivateError, Active, ActiveQueue, Interrupt, Queue, QueueError};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Read, Sent, Tap, TapError};
use super::features;
use super::queue::{
    ControlCommand, ControlError, Offloads, ReceiveError, Receiver, Sender, control_answer,
    control_command,
};
use crate::serve::{Fault, ServedQueue, WatchError, unwatch, watch};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Behind the only pair of queues.
const CONTROL: u16 = 2;

/// The most packets that are received in a turn; a turn of sending has as many as the queue.
const TURN: usize = 64;
/// A turn ends behind this many bytes, in either direction: copying them takes some 100 microseconds.
const TURN_BYTES: usize = 1 << 20;

/// The tap, and whether packets go over it. It outlives the worker, which a reset of the device ends.
#[derive(Debug)]
pub(super) struct Link {
    tap: Tap,
    /// The device's address, which the log names it by.
    mac: [u8; 6],
    /// A [`State`].
    state: AtomicU8,
}

/// What the driver reads of a link, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Up,
    /// The host's interface is down.
    Down,
    /// The tap is gone, for good.
    Cut,
}

impl Link {
    pub(super) const fn new(tap: Tap, mac: [u8; 6]) -> Self {
        Self {
            tap,
            mac,
            state: AtomicU8::new(State::Up as u8),
        }
    }

    pub(super) const fn tap(&self) -> &Tap {
        &self.tap
    }

    fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }

    pub(super) fn is_up(&self) -> bool {
        self.is(State::Up)
    }

    /// Only the worker changes it, and each change is told once.
    fn set(&self, state: State, interrupt: &Interrupt) -> bool {
        let changes = !self.is(state) && !self.is(State::Cut);
        if changes {
            self.state.store(state as u8, Ordering::Release);
            interrupt.config_changed();
        }
        changes
    }

    /// The tap is gone, for good: something that the host does, so it is an error and told once.
    fn cut(&self, interrupt: &Interrupt, error: &(dyn std::error::Error + 'static)) {
        if self.set(State::Cut, interrupt) {
            let mac = self.mac;
            tracing::error!(error, "network device {mac:02x?} has lost its link");
        }
    }
}

/// Why the device goes out of service: the driver broke something, or the event loop did.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// Serves a network device's queues.
pub(super) struct NetWorker {
    pair: Pair,
    /// A driver that knows no commands leaves it out.
    control: Option<ServedQueue>,
    agreed: u64,
    link: Arc<Link>,
    interrupt: Interrupt,
    fault: Fault,
}

impl NetWorker {
    pub(super) fn new(
        mut active: Active,
        link: Arc<Link>,
        fault: Fault,
    ) -> Result<Self, ActivateError> {
        let agreed = active.features;
        let pair = Pair::new(
            active.take_queue(RECEIVE)?,
            active.take_queue(TRANSMIT)?,
            agreed,
        );
        Ok(Self {
            pair,
            control: active.take_queue(CONTROL).ok().map(ServedQueue::new),
            agreed,
            link,
            interrupt: active.interrupt,
            fault,
        })
    }

    fn serve(&mut self, events: &Events) -> Result<(), ServeError> {
        let Self {
            pair,
            link,
            interrupt,
            ..
        } = self;
        if pair.transmit.is_kick(events) {
            pair.transmit.clear_kick();
            pair.transmit(link, interrupt)?;
        } else if self
            .control
            .as_ref()
            .is_some_and(|queue| queue.is_kick(events))
        {
            self.obey()?;
        } else {
            if pair.receive.is_kick(events) {
                pair.receive.clear_kick();
            } else if events.event_set().contains(EventSet::OUT) {
                // It was waited for while the interface was down.
                link.set(State::Up, interrupt);
            }
            pair.receive.serve(link, interrupt)?;
        }
        Ok(())
    }

    /// Carries out what the driver commands.
    fn obey(&mut self) -> Result<(), ServeError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        control.clear_kick();
        control.begin()?;
        while let Some(chain) = control.next()? {
            let is_done = match control_command(chain, self.agreed) {
                ControlCommand::Filter => true,
                ControlCommand::Offloads(wanted) => {
                    let offloads = Offloads::to_driver(wanted);
                    self.pair.receive.set_offloads(&self.link, offloads).is_ok()
                }
                ControlCommand::Unknown => false,
            };
            let written = control_answer(chain, is_done)?;
            control.finish(written)?;
        }
        control.end(&self.interrupt);
        Ok(())
    }

    /// Tells the tap what the driver takes. Here and not at activation, so that only the thread that
    /// reads the tap needs the system call for it.
    fn begin(&mut self, ops: &mut EventOps<'_>) -> Result<(), ServeError> {
        let offloads = Offloads::to_driver(self.agreed);
        if let Err(error) = self.link.tap.set_offloads(offloads) {
            self.link.cut(&self.interrupt, &error);
        }
        watch(ops, &self.kicks())?;
        self.pair.receive.watch_tap(&self.link, ops)
    }

    fn kicks(&self) -> Vec<Events> {
        let pair = &self.pair;
        [pair.receive.event(), pair.transmit.event()]
            .into_iter()
            .chain(self.control.as_ref().map(ServedQueue::event))
            .collect()
    }

    fn stop(&mut self, error: &ServeError, ops: &mut EventOps<'_>) {
        self.fault.raise(&self.interrupt, error);
        unwatch(ops, &self.kicks());
        if !self.pair.receive.watched.is_empty() {
            unwatch(ops, &[Events::empty(&self.link.tap)]);
        }
    }
}

impl MutEventSubscriber for NetWorker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = self.begin(ops) {
            self.stop(&error, ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let served = self.serve(&events);
        if let Err(error) = served.and_then(|()| self.pair.receive.watch_tap(&self.link, ops)) {
            self.stop(&error, ops);
        }
    }
}

/// A receive queue and a transmit queue, for one queue of the tap.
struct Pair {
    receive: ReceiveQueue,
    transmit: ServedQueue,
    sender: Sender,
}

impl Pair {
    fn new(receive: ActiveQueue, transmit: ActiveQueue, agreed: u64) -> Self {
        Self {
            receive: ReceiveQueue::new(receive, agreed),
            transmit: ServedQueue::new(transmit),
            sender: Sender::new(Offloads::to_device(agreed)),
        }
    }

    /// Sends what the driver has. Without a tap it is lost.
    fn transmit(&mut self, link: &Link, interrupt: &Interrupt) -> Result<(), QueueError> {
        let mut bytes = 0;
        self.transmit.begin()?;
        while let Some(chain) = self.transmit.next()? {
            if !link.is(State::Cut)
                && let Ok(packet) = self.sender.packet(chain)
            {
                bytes += packet.len();
                match link.tap.send(&packet) {
                    Ok(Sent::Done) => {}
                    Ok(Sent::Down) => _ = link.set(State::Down, interrupt),
                    Err(error) => link.cut(interrupt, &error),
                }
            }
            self.transmit.finish(0)?;
            if bytes >= TURN_BYTES {
                self.transmit.cut_round_short();
            }
        }
        self.transmit.end(interrupt);
        Ok(())
    }
}

/// A receive queue, which keeps chains for packets to come.
struct ReceiveQueue {
    queue: Queue,
    kick: EventFd,
    receiver: Receiver,
    /// Whether the driver was asked to kick when it gives more chains.
    asks_for_kicks: bool,
    /// What the tap is watched for.
    watched: EventSet,
}

impl ReceiveQueue {
    fn new(active: ActiveQueue, agreed: u64) -> Self {
        let mergeable = agreed & features::MRG_RXBUF != 0;
        Self {
            queue: active.queue,
            kick: active.kick,
            receiver: Receiver::new(Offloads::to_driver(agreed), mergeable),
            asks_for_kicks: true,
            watched: EventSet::empty(),
        }
    }

    fn event(&self) -> Events {
        Events::new(&self.kick, EventSet::IN)
    }

    fn is_kick(&self, events: &Events) -> bool {
        events.fd() == self.kick.as_raw_fd()
    }

    fn clear_kick(&self) {
        // Nothing to read means that another turn took note of it.
        let _ = self.kick.read();
    }

    /// Changes what the driver takes. If the tap refuses that everything stays as it was.
    fn set_offloads(&mut self, link: &Link, offloads: Offloads) -> Result<(), TapError> {
        link.tap.set_offloads(offloads)?;
        self.receiver.set_offloads(offloads);
        Ok(())
    }

    /// Takes chains for the next packet. `false`: the driver has given none, and its next kick tells.
    fn has_room(&mut self) -> Result<bool, ServeError> {
        self.receiver.refill(&mut self.queue)?;
        while self.receiver.room().is_none() {
            self.asks_for_kicks = true;
            if !self.queue.enable_kicks()? {
                return Ok(false);
            }
            // Takes a chain at least, so this ends.
            self.receiver.refill(&mut self.queue)?;
        }
        if self.asks_for_kicks {
            self.asks_for_kicks = false;
            self.queue.disable_kicks()?;
        }
        Ok(true)
    }

    /// Delivers what the tap has, at most a turn of it: what is left wakes the worker again.
    fn serve(&mut self, link: &Link, interrupt: &Interrupt) -> Result<(), ServeError> {
        let mut bytes = 0;
        for _ in 0..TURN {
            if bytes >= TURN_BYTES || link.is(State::Cut) || !self.has_room()? {
                break;
            }
            let Some(room) = self.receiver.room() else {
                break;
            };
            match link.tap.receive(room) {
                Ok(Read::Packet(len)) => {
                    bytes += len;
                    self.receiver.received(&mut self.queue, len)?;
                }
                Ok(Read::Lost) => {}
                Ok(Read::Nothing) => break,
                Err(error) => link.cut(interrupt, &error),
            }
        }
        if self.queue.needs_interrupt() {
            interrupt.used_buffers();
        }
        Ok(())
    }

    /// Watches the tap for packets while there is room for one, and only then: it would wake the worker without end. While
    /// the host's interface is down, for its coming up too, with which the tap can be written to.
    fn watch_tap(&mut self, link: &Link, ops: &mut EventOps<'_>) -> Result<(), ServeError> {
        let mut wanted = EventSet::empty();
        // The last packet of a turn may have taken all the room there was.
        wanted.set(EventSet::IN, !link.is(State::Cut) && self.has_room()?);
        wanted.set(EventSet::OUT, link.is(State::Down));
        if wanted != self.watched {
            if !self.watched.is_empty() {
                unwatch(ops, &[Events::empty(&link.tap)]);
            }
            if !wanted.is_empty() {
                watch(ops, &[Events::new(&link.tap, wanted)])?;
            }
            self.watched = wanted;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;
    use coracle_virtio::testing::{Driver, eventfd, interrupt, memory};

    use super::super::queue::testing::link as pair;
    use super::*;

    #[test]
    fn driver_gets_what_it_took_if_the_tap_refuses_a_change() {
        // No tap, which refuses.
        let (ours, theirs) = pair();
        let link = Link::new(Tap::unchecked(ours), [2, 0, 0, 0, 0, 1]);
        let mut driver = Driver::new(&memory(1 << 20), GuestAddress(0), 1 << 20, 16).unwrap();
        let active = ActiveQueue {
            index: RECEIVE,
            queue: driver.queue(0).unwrap(),
            kick: eventfd(),
        };
        let mut queue = ReceiveQueue::new(active, features::GUEST_CSUM | features::GUEST_TSO4);
        driver.add(&[], &[1526]).unwrap();

        let changed = queue.set_offloads(&link, Offloads::default());

        assert!(changed.is_err());
        // A checksum is missing, and it is to be cut.
        let mut packet = [0; 100];
        packet[..2].copy_from_slice(&[1, 1]);
        rustix::io::write(theirs, &packet).unwrap();
        queue.serve(&link, &interrupt()).unwrap();
        assert!(driver.used().unwrap().is_some());
    }
}
