// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serves the queues of an active device: hands packets and buffers to the [`Mux`], and tells the
//! guest.

use std::error::Error;
use std::sync::Arc;

use coracle_virtio::{ActivateError, Active, ActiveQueue, Chain, Interrupt, QueueError};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::buffer::{Buffer, Packet, PacketError};
use crate::mux::{Filled, Mux};

/// Index of the queue of packets to the guest.
pub const RX_QUEUE: u16 = 0;
/// Index of the queue of packets from the guest.
pub const TX_QUEUE: u16 = 1;
/// Index of the queue of events to the guest.
pub const EVENT_QUEUE: u16 = 2;

/// Packets handled in each direction before others on this thread have their turn, and the guest is
/// told of what was done: a guest that adds packets as fast as they are handled would keep the
/// thread for ever.
const TURN: usize = 256;

/// The event that tells a guest that its connections are gone, and that its context identifier may
/// have changed (`VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`).
const EVENT_TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// What has become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Rx,
    Tx,
    Event,
    Mux,
    TransportReset,
}

impl Source {
    const ALL: [Self; 5] = [
        Self::Rx,
        Self::Tx,
        Self::Event,
        Self::Mux,
        Self::TransportReset,
    ];

    const fn number(self) -> u32 {
        self as u32
    }

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|source| source.number() == number)
    }
}

/// The worker.
#[derive(Debug)]
pub struct VsockWorker {
    rx: ActiveQueue,
    tx: ActiveQueue,
    event: ActiveQueue,
    interrupt: Interrupt,
    mux: Mux,
    transport_reset: Arc<EventFd>,
    /// The guest is to be told of a transport reset.
    event_due: bool,
    /// A buffer of the guest's, if `has_buffer`: taken when there seemed to be something for it.
    buffer: Chain,
    has_buffer: bool,
    packet: Chain,
    /// Whether a failure is worth a line in the log.
    logs: bool,
}

impl VsockWorker {
    /// A worker for the queues of `active`. With `logs`, it says in the log why it stopped, if it
    /// did.
    ///
    /// # Errors
    ///
    /// [`ActivateError`] if the driver left a queue out.
    pub fn new(
        mut active: Active,
        mux: Mux,
        transport_reset: Arc<EventFd>,
        logs: bool,
    ) -> Result<Self, ActivateError> {
        Ok(Self {
            rx: active.take_queue(RX_QUEUE)?,
            tx: active.take_queue(TX_QUEUE)?,
            event: active.take_queue(EVENT_QUEUE)?,
            interrupt: active.interrupt,
            mux,
            transport_reset,
            event_due: false,
            buffer: Chain::new(),
            has_buffer: false,
            packet: Chain::new(),
            logs,
        })
    }

    fn source(&self, source: Source) -> Events {
        let (number, readable) = (source.number(), EventSet::IN);
        match source {
            Source::Rx => Events::with_data(&self.rx.kick, number, readable),
            Source::Tx => Events::with_data(&self.tx.kick, number, readable),
            Source::Event => Events::with_data(&self.event.kick, number, readable),
            Source::Mux => Events::with_data(&self.mux, number, readable),
            Source::TransportReset => Events::with_data(&*self.transport_reset, number, readable),
        }
    }

    /// Handles what has become ready, and all that follows from it.
    fn handle(&mut self, source: Source) -> Result<(), QueueError> {
        // An eventfd that was readable has a count to take, so none of these waits or fails.
        let _ = match source {
            Source::Rx => self.rx.kick.read(),
            Source::Tx => self.tx.kick.read(),
            Source::Event => self.event.kick.read(),
            Source::TransportReset => self.transport_reset.read(),
            Source::Mux => Ok(0),
        };
        match source {
            Source::Mux => self.mux.poll(),
            Source::TransportReset => {
                self.mux.disconnect_all();
                self.event_due = true;
            }
            Source::Rx | Source::Tx | Source::Event => {}
        }
        let served = self.serve();
        // Each is asked, also if the answer is clear: asking is what settles the queue's count.
        let wanted = self.rx.queue.needs_interrupt()
            | self.tx.queue.needs_interrupt()
            | self.event.queue.needs_interrupt();
        if wanted {
            self.interrupt.used_buffers();
        }
        served
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        self.send_event()?;
        let (mut packets, mut buffers) = (TURN, TURN);
        loop {
            let is_held_up = self.take_packets(&mut packets)?;
            self.fill_buffers(&mut buffers)?;
            if packets == 0 || buffers == 0 {
                // To be called again after others. If the count is full, it will be anyway.
                let _ = self.tx.kick.write(1);
                return Ok(());
            }
            if !is_held_up || !self.mux.has_room() {
                return Ok(());
            }
        }
    }

    /// Handles the guest's packets, `limit` at most. Returns whether there may be more that have to
    /// wait until answers are through.
    fn take_packets(&mut self, limit: &mut usize) -> Result<bool, QueueError> {
        let queue = &mut self.tx.queue;
        queue.disable_kicks()?;
        while *limit > 0 {
            if !self.mux.has_room() {
                return Ok(true);
            }
            if !queue.pop(&mut self.packet)? {
                if queue.enable_kicks()? {
                    continue;
                }
                return Ok(false);
            }
            *limit -= 1;
            match Packet::read(&self.packet) {
                Ok(packet) => self.mux.receive(packet),
                Err(PacketError::NoData { header, .. }) => self.mux.receive_broken(&header),
                // Nobody can be told.
                Err(PacketError::NoHeader(_)) => {}
            }
            queue.add_used(self.packet.head(), 0)?;
        }
        Ok(false)
    }

    /// Fills the guest's buffers with packets, `limit` at most, while there are both.
    fn fill_buffers(&mut self, limit: &mut usize) -> Result<(), QueueError> {
        let queue = &mut self.rx.queue;
        queue.disable_kicks()?;
        while *limit > 0 && self.mux.has_packets() {
            if !self.has_buffer {
                if !queue.pop(&mut self.buffer)? {
                    // Only now does it matter when the guest adds some.
                    if queue.enable_kicks()? {
                        continue;
                    }
                    return Ok(());
                }
                self.has_buffer = true;
            }
            let filled = match Buffer::new(&self.buffer) {
                Some(buffer) => self.mux.fill(buffer),
                None => Filled::TooSmall,
            };
            let written = match filled {
                Filled::Packet(len) => len,
                Filled::TooSmall => 0,
                Filled::Nothing => continue,
            };
            *limit -= 1;
            self.has_buffer = false;
            queue.add_used(self.buffer.head(), written)?;
        }
        Ok(())
    }

    /// Tells the guest of a transport reset, if that is due and the guest has given a buffer.
    fn send_event(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.event.queue;
        while self.event_due {
            if !queue.pop(&mut self.packet)? {
                if queue.enable_kicks()? {
                    continue;
                }
                return Ok(());
            }
            let mut writer = self.packet.writable();
            self.event_due = writer.write_all(&EVENT_TRANSPORT_RESET).is_err();
            let written = writer.written();
            drop(writer);
            queue.add_used(self.packet.head(), written)?;
        }
        Ok(())
    }

    /// Gives up, until the driver resets the device.
    fn stop(&mut self, reason: &(dyn Error + 'static), ops: &mut EventOps) {
        if self.logs {
            tracing::error!(error = reason, "vsock device stopped");
        }
        self.interrupt.needs_reset();
        self.mux.disconnect_all();
        for source in Source::ALL {
            // What is not watched needs no removing.
            let _ = ops.remove(self.source(source));
        }
    }
}

impl MutEventSubscriber for VsockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for source in Source::ALL {
            if let Err(error) = ops.add(self.source(source)) {
                return self.stop(&error, ops);
            }
        }
        // What the driver added before its kicks were watched is looked at now. If the count is
        // full, there is a kick already.
        let _ = self.tx.kick.write(1);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let Some(source) = Source::from_number(events.data()) else {
            return;
        };
        if let Err(error) = self.handle(source) {
            self.stop(&error, ops);
        }
    }
}
