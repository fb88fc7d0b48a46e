// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A back end that is made of rust-vmm's vhost-user daemon and virtqueue.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, RwLock};

use coracle_virtio::features;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::guest::QUEUES;

/// Answers each request with its bytes in reverse.
#[derive(Clone, Copy)]
pub struct Reverse {
    pub features: u64,
    pub protocol: VhostUserProtocolFeatures,
    pub queues: usize,
}

impl Default for Reverse {
    fn default() -> Self {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        Reverse {
            features: features::VERSION_1 | features::RING | protocol,
            protocol: VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK,
            queues: QUEUES,
        }
    }
}

pub struct Backend {
    shape: Reverse,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.shape.queues
    }

    fn max_queue_size(&self) -> usize {
        128
    }

    fn features(&self) -> u64 {
        self.shape.features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.shape.protocol
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().unwrap().memory();
        let vring = &vrings[usize::from(queue)];
        let chains: Vec<_> = {
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.iter(memory.clone()).unwrap().collect()
        };
        for chain in chains {
            let mut bytes = Vec::new();
            let head = chain.head_index();
            let mut request = chain.clone().reader(&memory).unwrap();
            request.read_to_end(&mut bytes).unwrap();
            bytes.reverse();
            chain.writer(&memory).unwrap().write_all(&bytes).unwrap();
            vring.add_used(head, bytes.len() as u32).unwrap();
        }
        vring.signal_used_queue()
    }
}

/// A running daemon, and the frontend's end of its connection.
pub fn backend(shape: Reverse) -> (VhostUserDaemon<Arc<RwLock<Backend>>>, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend {
        shape,
        memory: None,
    };
    let backend = Arc::new(RwLock::new(backend));
    let mut daemon = VhostUserDaemon::new("reverse".to_owned(), backend, memory).unwrap();
    let mut listener = Listener::new(&path, true).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    daemon.start(&mut listener).unwrap();
    (daemon, stream)
}
