// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console's life cycle, and its worker.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_virtio::{ActivateError, Active, DeviceType, Interrupt, VirtioDevice, Worker};
use coracle_virtio::{QueueError, features};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::backend::{Backend, Input};
use super::queue;
use crate::serve::{Fault, ServedQueue, unwatch, watch};

/// Receive queue, then transmit queue (virtio 1.3, section 5.3.2).
const QUEUE_SIZES: [u16; 2] = [64, 64];

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A virtio console with one port.
pub struct Console {
    backend: Arc<Backend>,
    fault: Fault,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("input", &self.backend.input_fd())
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A console that writes what the guest prints to `output` and gives it what can be read
    /// from `input`.
    ///
    /// `output` is written to on the worker's event loop: it should not block. An error of it
    /// loses output and nothing else. `input` is a pipe, a socket or a terminal, which nothing
    /// else reads from; a file or device that cannot be polled gives no input.
    pub fn new(output: Box<dyn Write + Send>, input: Option<OwnedFd>) -> Self {
        Console {
            backend: Arc::new(Backend::new(output, input)),
            fault: Fault::new("console"),
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        features::RING
    }

    // Every field of the configuration space belongs to a feature that is not offered.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut active: Active) -> Result<Option<Worker>, ActivateError> {
        Ok(Some(Box::new(ConsoleWorker {
            receive: ServedQueue::new(active.take_queue(RECEIVE)?),
            transmit: ServedQueue::new(active.take_queue(TRANSMIT)?),
            backend: Arc::clone(&self.backend),
            input: Input::default(),
            input_watched: false,
            interrupt: active.interrupt,
            fault: self.fault.clone(),
        })))
    }

    fn reset(&mut self) {}
}

/// Moves bytes between a console's queues and the host, on the event loop.
struct ConsoleWorker {
    receive: ServedQueue,
    transmit: ServedQueue,
    backend: Arc<Backend>,
    input: Input,
    input_watched: bool,
    interrupt: Interrupt,
    fault: Fault,
}

impl ConsoleWorker {
    fn transmit(&mut self) -> Result<(), QueueError> {
        self.transmit.begin()?;
        while let Some(chain) = self.transmit.next()? {
            let mut output = self.backend.output();
            // Lost output is no reason to stop a guest that prints.
            let _ = queue::transmit(chain, &mut *output);
            drop(output);
            self.transmit.finish(0)?;
        }
        self.transmit.end(&self.interrupt);
        Ok(())
    }

    /// Gives pending input to the guest, as far as it has published buffers.
    fn deliver(&mut self) -> Result<(), QueueError> {
        self.receive.begin()?;
        while !self.input.pending().is_empty()
            && let Some(chain) = self.receive.next()?
        {
            let written = queue::receive(chain, self.input.pending());
            self.input.take(written as usize);
            self.receive.finish(written)?;
        }
        self.receive.end(&self.interrupt);
        Ok(())
    }

    /// Watches the host's side while there is room for more of it, and only then: an input that
    /// stays readable, or that hung up, would wake the worker without end.
    fn watch_input(&mut self, ops: &mut EventOps<'_>) {
        let Some(event) = self.input_event() else {
            return;
        };
        match (self.input_watched, self.input.wants_more()) {
            (false, true) => match ops.add(event) {
                Ok(()) => self.input_watched = true,
                // What cannot be polled (a regular file) is no input.
                Err(_) => self.input.end(),
            },
            (true, false) => {
                unwatch(ops, &[event]);
                self.input_watched = false;
            }
            _ => {}
        }
    }

    fn input_event(&self) -> Option<Events> {
        let fd = self.backend.input_fd()?;
        Some(Events::new_raw(fd, EventSet::IN))
    }

    fn stop(&mut self, ops: &mut EventOps<'_>) {
        unwatch(ops, &[self.receive.event(), self.transmit.event()]);
        if self.input_watched
            && let Some(event) = self.input_event()
        {
            unwatch(ops, &[event]);
        }
    }
}

impl MutEventSubscriber for ConsoleWorker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kicks = [self.receive.event(), self.transmit.event()];
        if let Err(error) = watch(ops, &kicks) {
            self.fault.raise(&self.interrupt, &error);
            self.stop(ops);
            return;
        }
        self.watch_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let served = if self.transmit.is_kick(&events) {
            self.transmit.clear_kick();
            self.transmit()
        } else if self.receive.is_kick(&events) {
            self.receive.clear_kick();
            self.deliver()
        } else {
            self.input.fill(&self.backend);
            self.deliver()
        };
        match served {
            Ok(()) => self.watch_input(ops),
            Err(error) => {
                self.fault.raise(&self.interrupt, &error);
                self.stop(ops);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;

    use coracle_virtio::DeviceStatus;
    use coracle_virtio::testing::activate;
    use rstest::rstest;

    use super::*;
    use crate::BoundedLog;
    use crate::testing::{Guest, QUEUE_SIZE};

    const RX: usize = RECEIVE as usize;
    const TX: usize = TRANSMIT as usize;

    fn with_log() -> (Guest, BoundedLog) {
        let log = BoundedLog::in_memory(64 << 10);
        let console = Console::new(Box::new(log.clone()), None);
        (Guest::active(console), log)
    }

    fn with_input() -> (Guest, File) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let console = Console::new(Box::new(io::sink()), Some(reader));
        (Guest::active(console), File::from(writer))
    }

    fn received(guest: &mut Guest) -> Option<Vec<u8>> {
        guest.queues[RX].used().unwrap().map(|used| used.data)
    }

    #[test]
    fn output_reaches_the_log_in_order() {
        let (mut guest, log) = with_log();
        guest.queues[TX].add(&[b"Linux ", b"version"], &[]).unwrap();
        guest.queues[TX].add_indirect(&[b" 6.1\n"], &[]).unwrap();

        guest.kick(TX);

        assert_eq!(log.contents().unwrap(), b"Linux version 6.1\n");
        assert_eq!(guest.queues[TX].used().unwrap().unwrap().len, 0);
        assert!(guest.interrupted());
    }

    #[test]
    fn output_that_fails_does_not_stop_the_guest() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut guest = Guest::active(Console::new(Box::new(Full), None));
        guest.queues[TX].add(&[b"lost"], &[]).unwrap();

        guest.kick(TX);

        assert!(guest.queues[TX].used().unwrap().is_some());
        assert!(!guest.needs_reset());
    }

    #[test]
    fn input_is_delivered_to_waiting_buffers() {
        let (mut guest, mut host) = with_input();
        guest.queues[RX].add(&[], &[16]).unwrap();
        guest.kick(RX);

        host.write_all(b"ls\n").unwrap();
        guest.settle();

        assert_eq!(received(&mut guest).unwrap(), b"ls\n");
        assert!(guest.interrupted());
    }

    #[test]
    fn input_waits_for_buffers_without_spinning() {
        let (mut guest, mut host) = with_input();
        host.write_all(b"early").unwrap();
        guest.settle();

        guest.queues[RX].add(&[], &[16]).unwrap();
        guest.kick(RX);

        assert_eq!(received(&mut guest).unwrap(), b"early");
    }

    #[test]
    fn input_is_split_over_small_buffers() {
        let (mut guest, mut host) = with_input();
        guest.queues[RX].add(&[], &[2]).unwrap();
        guest.queues[RX].add(&[], &[2, 1]).unwrap();

        host.write_all(b"abcdef").unwrap();
        guest.settle();

        assert_eq!(received(&mut guest).unwrap(), b"ab");
        assert_eq!(received(&mut guest).unwrap(), b"cde");
        guest.queues[RX].add(&[], &[16]).unwrap();
        guest.kick(RX);
        assert_eq!(received(&mut guest).unwrap(), b"f");
    }

    #[test]
    fn input_that_hung_up_is_drained_and_left() {
        let (mut guest, mut host) = with_input();
        guest.queues[RX].add(&[], &[16]).unwrap();
        host.write_all(b"last").unwrap();

        drop(host);
        guest.settle();

        assert_eq!(received(&mut guest).unwrap(), b"last");
        assert!(!guest.needs_reset());
    }

    #[test]
    fn file_is_no_input() {
        let file = tempfile::tempfile().unwrap();
        let mut guest = Guest::active(Console::new(Box::new(io::sink()), Some(file.into())));
        guest.queues[RX].add(&[], &[16]).unwrap();

        guest.kick(RX);

        assert_eq!(received(&mut guest), None);
        assert!(!guest.needs_reset());
    }

    #[test]
    fn flood_of_unwritable_receive_buffers_ends() {
        let (mut guest, mut host) = with_input();
        (0..QUEUE_SIZE).for_each(|_| {
            guest.queues[RX].add(&[b"?"], &[]).unwrap();
        });

        host.write_all(b"input").unwrap();
        guest.settle();

        assert_eq!(received(&mut guest).unwrap(), b"");
        assert!(!guest.needs_reset());
    }

    #[rstest]
    #[case::receive(RX)]
    #[case::transmit(TX)]
    fn broken_queue_takes_the_device_out_of_service(#[case] queue: usize) {
        let (mut guest, mut host) = with_input();
        guest.queues[queue].publish(QUEUE_SIZE).unwrap();
        host.write_all(b"input").unwrap();

        guest.kick(queue);

        assert!(guest.needs_reset());
        assert_eq!(received(&mut guest), None);
    }

    #[test]
    fn output_goes_on_after_a_reset() {
        let (mut guest, log) = with_log();
        guest.queues[TX].add(&[b"before "], &[]).unwrap();
        guest.kick(TX);

        guest.activate();
        guest.queues[TX].add(&[b"after"], &[]).unwrap();
        guest.kick(TX);

        assert_eq!(log.contents().unwrap(), b"before after");
    }

    #[test]
    fn queue_that_is_left_out_is_a_fault() {
        let mut guest = Guest::new(Console::new(Box::new(io::sink()), None));
        let only_receive = [guest.queues[RX].addresses()];

        let status = activate(&mut guest.transport, features::VERSION_1, &only_receive);

        assert_ne!(status & DeviceStatus::NEEDS_RESET, 0);
    }
}
