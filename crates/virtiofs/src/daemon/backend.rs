// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as vhost-user sees it: features, queues, memory, and who serves which queue.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use coracle_memory::GuestMemory;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::queue::{self, Workbench};
use super::ring::Ring;
use super::{DaemonConfig, DaemonError};
use crate::filesystem::FileSystem;
use crate::server::Server;

/// vhost-user's map of queues to threads has 64 bits.
const MAX_QUEUES: u16 = 64;
const MAX_QUEUE_SIZE: u16 = 32768;

/// A server as a vhost-user device.
pub(super) struct Backend<F> {
    server: Server<F>,
    queues: u16,
    queue_size: u16,
    /// One for each thread that serves queues.
    workbenches: Vec<Mutex<Workbench>>,
    memory: RwLock<Option<GuestMemory>>,
    indirect: AtomicBool,
    fault: Mutex<Option<DaemonError>>,
    connection: OnceLock<ShutdownHandle>,
}

impl<F: FileSystem> Backend<F> {
    pub(super) fn new(server: Server<F>, config: &DaemonConfig) -> Result<Self, DaemonError> {
        let DaemonConfig {
            request_queues,
            queue_size,
            threads,
            ..
        } = *config;
        let queues = request_queues.saturating_add(1);
        let fits = (2..=MAX_QUEUES).contains(&queues)
            && queue_size.is_power_of_two()
            && queue_size <= MAX_QUEUE_SIZE;
        if !fits {
            return Err(DaemonError::Config {
                request_queues,
                queue_size,
            });
        }
        Ok(Self {
            server,
            queues,
            queue_size,
            workbenches: (0..threads.clamp(1, queues))
                .map(|_| Mutex::default())
                .collect(),
            memory: RwLock::new(None),
            indirect: AtomicBool::new(false),
            fault: Mutex::new(None),
            connection: OnceLock::new(),
        })
    }

    /// The connection to be closed when a queue breaks.
    pub(super) fn hang_up_with(&self, handle: ShutdownHandle) {
        let handle = self.connection.get_or_init(|| handle);
        if self
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            handle.shutdown();
        }
    }

    /// Why the connection was closed from this side, if it was.
    pub(super) fn take_fault(&self) -> Option<DaemonError> {
        self.fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// A broken queue is not read any further, and the virtual machine learns of it by the end of the
    /// connection. The first fault is the one to report.
    fn give_up(&self, fault: DaemonError) {
        self.fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(fault);
        if let Some(connection) = self.connection.get() {
            connection.shutdown();
        }
    }

    fn is_broken(&self) -> bool {
        self.fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}

impl<F: FileSystem> VhostUserBackend for Backend<F> {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        self.queue_size.into()
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.indirect.store(
            features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            Ordering::Release,
        );
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        self.server.reset();
    }

    // Each queue keeps that by itself.
    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let memory = GuestMemory::from_vm_memory(&memory.memory());
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    /// Queue i goes to thread i modulo their number.
    fn queues_per_thread(&self) -> Vec<u64> {
        let threads = self.workbenches.len();
        let mut masks = vec![0; threads];
        for queue in 0..usize::from(self.queues) {
            masks[queue % threads] |= 1_u64 << queue;
        }
        masks
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .inspect_err(
                |error| tracing::error!(%error, "no descriptor is left to end a thread by"),
            )
            .ok()
    }

    /// `index` counts the queues of this thread. An error from here would end the thread, so there is none.
    fn handle_event(
        &self,
        index: u16,
        _events: EventSet,
        rings: &[Ring],
        thread: usize,
    ) -> io::Result<()> {
        let queue = usize::from(index) * self.workbenches.len() + thread;
        let _alarm = Alarm {
            backend: self,
            queue,
        };
        let Some(ring) = rings.get(usize::from(index)) else {
            return Ok(());
        };
        if let Some(source) = ring.take_broken_kick() {
            self.give_up(DaemonError::Kick { queue, source });
        }
        if self.is_broken() {
            return Ok(());
        }
        let memory = self
            .memory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (Some(memory), Some(bench)) = (memory, self.workbenches.get(thread)) else {
            return Ok(());
        };
        let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
        let indirect = self.indirect.load(Ordering::Acquire);
        if let Err(source) = queue::drain(&self.server, ring, &memory, indirect, &mut bench) {
            self.give_up(DaemonError::Queue { queue, source });
        }
        Ok(())
    }
}

/// Gives up when a panic ends the thread, of which nobody else would learn: the virtual machine would wait for
/// answers for ever. It is the one way left in which a thread can end before the connection.
struct Alarm<'b, F: FileSystem> {
    backend: &'b Backend<F>,
    queue: usize,
}

impl<F: FileSystem> Drop for Alarm<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.backend
                .give_up(DaemonError::Panicked { queue: self.queue });
        }
    }
}
