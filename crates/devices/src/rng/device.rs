// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device's life cycle, and its worker.

use coracle_virtio::{ActivateError, Active, DeviceType, Interrupt, VirtioDevice, Worker};
use coracle_virtio::{QueueError, features};
use event_manager::{EventOps, Events, MutEventSubscriber};

use super::backend::HostEntropy;
use super::queue::{self, RequestError};
use crate::serve::{Fault, ServedQueue, unwatch, watch};

const QUEUE_SIZES: [u16; 1] = [64];
const REQUESTS: u16 = 0;

/// A virtio entropy device that draws from the host's generator.
#[derive(Debug)]
pub struct Rng {
    fault: Fault,
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Rng {
            fault: Fault::new("rng"),
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        features::RING
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut active: Active) -> Result<Option<Worker>, ActivateError> {
        Ok(Some(Box::new(RngWorker {
            requests: ServedQueue::new(active.take_queue(REQUESTS)?),
            interrupt: active.interrupt,
            fault: self.fault.clone(),
        })))
    }

    fn reset(&mut self) {}
}

/// Answers entropy requests on the event loop.
struct RngWorker {
    requests: ServedQueue,
    interrupt: Interrupt,
    fault: Fault,
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), ServeError> {
        self.requests.begin()?;
        while let Some(chain) = self.requests.next()? {
            let written = queue::fill(chain, &mut HostEntropy)?;
            self.requests.finish(written)?;
        }
        self.requests.end(&self.interrupt);
        Ok(())
    }
}

impl MutEventSubscriber for RngWorker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = watch(ops, &[self.requests.event()]) {
            self.fault.raise(&self.interrupt, &error);
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        self.requests.clear_kick();
        if let Err(error) = self.serve() {
            self.fault.raise(&self.interrupt, &error);
            unwatch(ops, &[self.requests.event()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor};
    use rstest::rstest;

    use super::*;
    use crate::testing::{Guest, OUTSIDE, QUEUE_SIZE, SEAM};

    const WRITABLE: Descriptor = Descriptor {
        address: 0x8000,
        len: 16,
        flags: DESC_WRITE,
        next: 0,
    };

    #[test]
    fn requests_are_answered_with_different_bytes() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].add(&[], &[32]).unwrap();
        guest.queues[0].add_indirect(&[], &[20, 12]).unwrap();

        guest.kick(0);

        let first = guest.queues[0].used().unwrap().unwrap();
        let second = guest.queues[0].used().unwrap().unwrap();
        assert_eq!((first.len, second.len), (32, 32));
        assert_ne!(first.data, second.data);
        assert_ne!(first.data, [0; 32]);
        assert!(guest.interrupted());
    }

    #[rstest]
    #[case::outside_memory(Descriptor { address: OUTSIDE, ..WRITABLE })]
    #[case::end_outside_memory(Descriptor { address: OUTSIDE - 8, ..WRITABLE })]
    #[case::wrapping(Descriptor { address: u64::MAX - 8, ..WRITABLE })]
    #[case::empty(Descriptor { len: 0, ..WRITABLE })]
    #[case::loop_to_itself(Descriptor { flags: DESC_WRITE | DESC_NEXT, ..WRITABLE })]
    #[case::next_outside_the_table(Descriptor { flags: DESC_NEXT, next: QUEUE_SIZE, ..WRITABLE })]
    #[case::nothing_to_write(Descriptor { flags: 0, ..WRITABLE })]
    fn broken_chain_takes_the_device_out_of_service(#[case] descriptor: Descriptor) {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].put(0, descriptor).unwrap();
        guest.queues[0].publish(0).unwrap();

        guest.kick(0);

        assert!(guest.needs_reset());
        assert_eq!(guest.queues[0].used().unwrap(), None);
    }

    #[test]
    fn buffer_across_adjacent_regions_is_answered() {
        let mut guest = Guest::active(Rng::new());
        let across = Descriptor {
            address: SEAM - 8,
            ..WRITABLE
        };
        guest.queues[0].put(0, across).unwrap();
        guest.queues[0].publish(0).unwrap();

        guest.kick(0);

        assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 16);
    }

    #[test]
    fn head_outside_the_table_takes_the_device_out_of_service() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].publish(QUEUE_SIZE).unwrap();

        guest.kick(0);

        assert!(guest.needs_reset());
    }

    #[test]
    fn index_too_far_ahead_takes_the_device_out_of_service() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].set_avail_index(QUEUE_SIZE + 1).unwrap();

        guest.kick(0);

        assert!(guest.needs_reset());
    }

    #[test]
    fn head_published_twice_is_answered_twice() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].put(0, WRITABLE).unwrap();
        guest.queues[0].publish(0).unwrap();
        guest.queues[0].publish(0).unwrap();

        guest.kick(0);

        assert_eq!(guest.queues[0].used().unwrap().unwrap().head, 0);
        assert_eq!(guest.queues[0].used().unwrap().unwrap().head, 0);
        assert!(!guest.needs_reset());
    }

    #[test]
    fn device_out_of_service_touches_its_queue_no_more() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].publish(QUEUE_SIZE).unwrap();
        guest.kick(0);

        guest.queues[0].add(&[], &[16]).unwrap();
        guest.kick(0);

        assert_eq!(guest.queues[0].used().unwrap(), None);
    }

    #[test]
    fn device_works_again_after_a_reset() {
        let mut guest = Guest::active(Rng::new());
        guest.queues[0].publish(QUEUE_SIZE).unwrap();
        guest.kick(0);

        guest.activate();
        guest.queues[0].add(&[], &[16]).unwrap();
        guest.kick(0);

        assert!(!guest.needs_reset());
        assert_eq!(guest.queues[0].used().unwrap().unwrap().len, 16);
    }
}
