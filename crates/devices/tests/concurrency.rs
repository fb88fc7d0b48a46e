// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver and a worker on a thread each, tens of thousands of buffers long: no kick and no
//! interrupt between them may be lost. A driver that kicks less than it may, as Linux's does,
//! waits for ever when one is.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coracle_devices::block::{Block, DiskFile};
use coracle_devices::console::Console;
use coracle_devices::rng::Rng;
use coracle_memory::GuestAddress;
use coracle_virtio::testing::{Driver, OneThread, activate, interrupt, memory};
use coracle_virtio::{Interrupt, MmioTransport, VirtioDevice, features};
use rstest::rstest;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

const QUEUE_SIZE: u16 = 16;
const REGION: u64 = 2 << 20;
const ROOM: u64 = 1 << 16;

/// After this long without progress, a kick or an interrupt was lost.
const PATIENCE: Duration = Duration::from_secs(20);

const BUFFERS: usize = 48_000;
/// The console's queue for output.
const TRANSMIT: usize = 1;
const TEXT: &[u8] = b"0123456789abcdef";

/// One test at a time, or its two threads would seldom run at once.
static TURN: Mutex<()> = Mutex::new(());

/// How the driver learns that its buffers were used.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// It looks until they are, as Linux's console does with interrupts off.
    Spin,
    /// It sleeps until the device's interrupt.
    Interrupt,
}

/// A driver of one queue that kicks, and is interrupted, only when the rings ask for it.
struct Guest {
    driver: Driver,
    kick: EventFd,
    interrupt: Interrupt,
    /// Tells when the interrupt's line is up.
    raised: PollContext<()>,
    event_idx: bool,
    published: u16,
    used: u16,
    /// Its end stops the worker.
    _transport: MmioTransport,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    /// Drives queue `index` of `device`.
    fn new(device: impl VirtioDevice + 'static, index: usize, features: u64) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = memory(REGION);
        let mut drivers: Vec<_> = (0..device.queue_sizes().len() as u64)
            .map(|queue| {
                Driver::new(
                    &memory,
                    GuestAddress(queue * ROOM),
                    ROOM as usize,
                    QUEUE_SIZE,
                )
            })
            .collect::<Result<_, _>>()
            .unwrap();
        let addresses: Vec<_> = drivers.iter().map(Driver::addresses).collect();
        let interrupt = interrupt();
        let workers = Arc::new(OneThread::default());
        let mut transport =
            MmioTransport::new(Box::new(device), memory, interrupt.clone(), workers).unwrap();
        activate(&mut transport, features::VERSION_1 | features, &addresses);
        let raised = PollContext::new().unwrap();
        raised.add(interrupt.line(), ()).unwrap();
        Self {
            raised,
            driver: drivers.swap_remove(index),
            kick: transport.kicks()[index].try_clone().unwrap(),
            interrupt,
            event_idx: features & features::RING_EVENT_IDX != 0,
            published: 0,
            used: 0,
            _transport: transport,
            _turn: turn,
        }
    }

    /// Publishes `batch` chains, and kicks if the device asks for it.
    fn publish(&mut self, batch: u16, readable: &[&[u8]], writable: &[u32]) {
        for _ in 0..batch {
            self.driver.add(readable, writable).unwrap();
        }
        self.published = self.published.wrapping_add(batch);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.driver.avail_event().unwrap();
            self.published.wrapping_sub(event).wrapping_sub(1) < batch
        } else {
            self.driver.used_flags().unwrap() == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Takes back `batch` chains; the lengths that the device says it wrote, summed up.
    fn reclaim(&mut self, batch: u16, wait: Wait) -> usize {
        let since = Instant::now();
        let mut written = 0;
        for _ in 0..batch {
            let mut looks = 0u32;
            written += loop {
                looks += 1;
                if let Some(used) = self.driver.used().unwrap() {
                    break used.len as usize;
                }
                assert!(since.elapsed() < PATIENCE, "a wake-up was lost");
                match wait {
                    // On a machine of one CPU, the worker has to come to its turn.
                    Wait::Spin if looks.is_multiple_of(1000) => thread::yield_now(),
                    Wait::Spin => std::hint::spin_loop(),
                    Wait::Interrupt => self.sleep(),
                }
            };
            self.used = self.used.wrapping_add(1);
        }
        written
    }

    /// Asks for an interrupt with the next chain used, and sleeps until it comes, unless the chain
    /// was used meanwhile.
    fn sleep(&mut self) {
        self.driver.set_used_event(self.used).unwrap();
        fence(Ordering::SeqCst);
        let used_index = GuestAddress(self.driver.addresses().used_ring.0 + 2);
        let memory = self.driver.memory();
        if memory.load_u16(used_index, Ordering::Acquire).unwrap() != self.used {
            return;
        }
        let ready = self.raised.wait_timeout(PATIENCE).unwrap().iter().count();
        assert_eq!(ready, 1, "an interrupt was lost");
        self.interrupt.line().read().unwrap();
    }
}

/// Counts the bytes that it is given.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[rstest]
fn every_line_of_a_loud_guest_arrives(
    #[values(0, features::RING_EVENT_IDX)] features: u64,
    #[values(Wait::Spin, Wait::Interrupt)] wait: Wait,
    #[values(1, QUEUE_SIZE)] batch: u16,
) {
    let count = Count::default();
    let console = Console::new(Box::new(count.clone()), None);
    let mut guest = Guest::new(console, TRANSMIT, features);

    let rounds = BUFFERS / usize::from(batch);
    for _ in 0..rounds {
        // One by one, each with a kick of its own if the device asks for it.
        (0..batch).for_each(|_| guest.publish(1, &[TEXT], &[]));
        guest.reclaim(batch, wait);
    }

    let printed = rounds * usize::from(batch) * TEXT.len();
    assert_eq!(count.0.load(Ordering::Relaxed), printed);
}

#[rstest]
fn every_request_for_entropy_is_answered(
    #[values(0, features::RING_EVENT_IDX)] features: u64,
    #[values(Wait::Spin, Wait::Interrupt)] wait: Wait,
    #[values(1, QUEUE_SIZE)] batch: u16,
) {
    let mut guest = Guest::new(Rng::new(), 0, features);
    let rounds = BUFFERS / usize::from(batch);
    let mut written = 0;

    for _ in 0..rounds {
        guest.publish(batch, &[], &[64]);
        written += guest.reclaim(batch, wait);
    }

    assert_eq!(written, rounds * usize::from(batch) * 64);
}

/// The driver goes on publishing while its buffers come back: both sides meet at all places.
#[rstest]
fn queue_that_is_never_empty_loses_nothing(
    #[values(0, features::RING_EVENT_IDX)] features: u64,
    #[values(Wait::Spin, Wait::Interrupt)] wait: Wait,
) {
    let count = Count::default();
    let console = Console::new(Box::new(count.clone()), None);
    let mut guest = Guest::new(console, TRANSMIT, features);
    let ahead = QUEUE_SIZE / 2;

    guest.publish(ahead, &[TEXT], &[]);
    for round in 0..BUFFERS {
        // Buffers have room again only when none is out.
        if round % 64 == 0 {
            guest.reclaim(ahead, wait);
            guest.publish(ahead, &[TEXT], &[]);
        }
        guest.publish(1, &[TEXT], &[]);
        guest.reclaim(1, wait);
    }
    guest.reclaim(ahead, wait);

    let printed = (BUFFERS + usize::from(ahead) * (1 + BUFFERS.div_ceil(64))) * TEXT.len();
    assert_eq!(count.0.load(Ordering::Relaxed), printed);
}

/// Three descriptors each, and the disk tells what it has done before a round is over.
#[rstest]
fn every_request_of_a_disk_is_answered(
    #[values(0, features::RING_EVENT_IDX)] features: u64,
    #[values(Wait::Spin, Wait::Interrupt)] wait: Wait,
    #[values(1, 5)] batch: u16,
) {
    let image = tempfile::tempfile().unwrap();
    image.set_len(512).unwrap();
    let disk = DiskFile::new(image, false).unwrap();
    let mut guest = Guest::new(Block::new(disk, "").unwrap(), 0, features);
    let rounds = BUFFERS / 4 / usize::from(batch);
    let mut written = 0;

    for _ in 0..rounds {
        // A header of zeroes reads the first sector.
        guest.publish(batch, &[&[0; 16]], &[512, 1]);
        written += guest.reclaim(batch, wait);
    }

    assert_eq!(written, rounds * usize::from(batch) * 513);
}
