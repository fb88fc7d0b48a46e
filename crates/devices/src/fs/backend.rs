// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection to a vhost-user backend: what is asked of it, in which order.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use coracle_virtio::{Active, ActiveQueue, features};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// The bit that says "there are protocol features". It belongs to the connection: no guest sees it.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A vhost-user backend that cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The socket itself fails.
    #[error("the vhost-user socket cannot be set up")]
    Socket(#[source] io::Error),
    /// A request was refused or not answered.
    #[error("the vhost-user backend failed at {request}")]
    Request {
        /// The request's name in the vhost-user protocol.
        request: &'static str,
        /// What became of it.
        #[source]
        source: vhost::Error,
    },
    /// Something that is needed is not offered.
    #[error("the vhost-user backend does not offer {0}")]
    NotOffered(&'static str),
    /// Fewer queues than the device is to have.
    #[error("the vhost-user backend has {offered} queues where {needed} are needed")]
    Queues {
        /// What the backend has.
        offered: u64,
        /// What the device needs, the high-priority queue included.
        needed: u64,
    },
    /// Memory that only this process can map.
    #[error("guest memory at {0} is not mapped from a file, so the backend cannot map it")]
    PrivateMemory(GuestAddress),
    /// A ring outside of guest memory.
    #[error("queue {index} is outside of guest memory")]
    Ring {
        /// Index of the queue.
        index: u16,
        /// The access that failed.
        #[source]
        source: AccessError,
    },
}

fn failed_at(request: &'static str) -> impl FnOnce(vhost::Error) -> BackendError {
    move |source| BackendError::Request { request, source }
}

/// A connected backend.
pub(super) struct Backend {
    frontend: Frontend,
    /// The same connection, to watch it.
    socket: UnixStream,
    features: u64,
    protocol: Protocol,
    /// The queues that were given to the backend and not taken back.
    started: Vec<usize>,
}

impl Backend {
    /// Takes ownership of the backend behind `socket` and agrees on what both sides support.
    pub(super) fn negotiate(socket: UnixStream, queues: u16) -> Result<Self, BackendError> {
        // The protocol is one of requests and answers. On a non-blocking socket `vhost` would
        // spin until the answer comes, and with a time limit begin again for ever.
        socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_read_timeout(None))
            .map_err(BackendError::Socket)?;
        let watched = socket.try_clone().map_err(BackendError::Socket)?;
        let mut frontend = Frontend::from_stream(socket, u64::from(queues));

        frontend.set_owner().map_err(failed_at("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(failed_at("GET_FEATURES"))?;
        if offered & features::VERSION_1 == 0 {
            return Err(BackendError::NotOffered("VIRTIO_F_VERSION_1"));
        }
        if offered & PROTOCOL_FEATURES == 0 {
            return Err(BackendError::NotOffered("protocol features"));
        }

        let protocol = frontend
            .get_protocol_features()
            .map_err(failed_at("GET_PROTOCOL_FEATURES"))?
            & (Protocol::MQ | Protocol::REPLY_ACK | Protocol::RESET_DEVICE);
        if !protocol.contains(Protocol::MQ) {
            return Err(BackendError::NotOffered("multiple queues"));
        }
        // Without it a refused ring shows only as a guest that waits.
        if !protocol.contains(Protocol::REPLY_ACK) {
            return Err(BackendError::NotOffered("acknowledgement of requests"));
        }
        frontend
            .set_protocol_features(protocol)
            .map_err(failed_at("SET_PROTOCOL_FEATURES"))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);

        let available = frontend
            .get_queue_num()
            .map_err(failed_at("GET_QUEUE_NUM"))?;
        if available < u64::from(queues) {
            return Err(BackendError::Queues {
                offered: available,
                needed: u64::from(queues),
            });
        }

        Ok(Backend {
            frontend,
            socket: watched,
            features: offered,
            protocol,
            started: Vec::new(),
        })
    }

    /// The virtio features that the backend offers, without what belongs to the connection.
    pub(super) fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// A second handle on the connection, to watch it for the backend's end.
    pub(super) fn watched_socket(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// Hands memory, queues and interrupt over and lets the backend run.
    pub(super) fn start(&mut self, active: &Active) -> Result<(), BackendError> {
        let agreed = (active.features | features::VERSION_1) & self.features;
        self.frontend
            .set_features(agreed | PROTOCOL_FEATURES)
            .map_err(failed_at("SET_FEATURES"))?;
        self.frontend
            .set_mem_table(&memory_table(&active.memory)?)
            .map_err(failed_at("SET_MEM_TABLE"))?;
        for queue in &active.queues {
            self.started.push(usize::from(queue.index));
            self.start_queue(queue, &active.memory, active.interrupt.line())?;
        }
        Ok(())
    }

    fn start_queue(
        &mut self,
        active: &ActiveQueue,
        memory: &GuestMemory,
        call: &EventFd,
    ) -> Result<(), BackendError> {
        let frontend = &mut self.frontend;
        let index = usize::from(active.index);
        let queue = &active.queue;
        // The backend is told where things are in this process, and translates that by way of
        // the memory table.
        let host_address = |address: GuestAddress| {
            memory
                .slice(address, 1)
                .map(|slice| slice.as_ptr() as u64)
                .map_err(|source| BackendError::Ring {
                    index: active.index,
                    source,
                })
        };
        let rings = VringConfigData {
            queue_max_size: queue.size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host_address(queue.desc_table())?,
            used_ring_addr: host_address(queue.used_ring())?,
            avail_ring_addr: host_address(queue.avail_ring())?,
            log_addr: None,
        };

        frontend
            .set_vring_num(index, queue.size())
            .map_err(failed_at("SET_VRING_NUM"))?;
        frontend
            .set_vring_base(index, 0)
            .map_err(failed_at("SET_VRING_BASE"))?;
        frontend
            .set_vring_addr(index, &rings)
            .map_err(failed_at("SET_VRING_ADDR"))?;
        // The call before the kick: with the kick the ring starts, and what it completes from
        // then on must find its way to the guest.
        frontend
            .set_vring_call(index, call)
            .map_err(failed_at("SET_VRING_CALL"))?;
        frontend
            .set_vring_kick(index, &active.kick)
            .map_err(failed_at("SET_VRING_KICK"))?;
        frontend
            .set_vring_enable(index, true)
            .map_err(failed_at("SET_VRING_ENABLE"))
    }

    /// Takes the queues back. Once this returns the backend touches guest memory no more; a
    /// backend that is gone touches none either, so its errors are not reported.
    pub(super) fn stop(&mut self) {
        if self.started.is_empty() {
            return;
        }
        for index in self.started.drain(..) {
            let _ = self.frontend.set_vring_enable(index, false);
            let _ = self.frontend.get_vring_base(index);
        }
        if self.protocol.contains(Protocol::RESET_DEVICE) {
            let _ = self.frontend.reset_device();
        }
    }
}

/// Guest memory as the backend has to map it.
fn memory_table(memory: &GuestMemory) -> Result<Vec<VhostUserMemoryRegionInfo>, BackendError> {
    memory
        .regions()
        .iter()
        .map(|region| {
            let (file, offset) = region
                .file()
                .ok_or(BackendError::PrivateMemory(region.start()))?;
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start().0,
                memory_size: region.len(),
                userspace_addr: region.host_address() as u64,
                mmap_offset: offset,
                mmap_handle: file.as_raw_fd(),
            })
        })
        .collect()
}
