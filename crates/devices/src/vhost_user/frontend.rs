// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is asked of a back end, in which order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use coracle_virtio::{Active, ActiveQueue, features};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, ConnectionError};
use super::message::{Body, MAX_CONFIG, MAX_REGIONS, PROTOCOL_FEATURES, Request, protocol};

/// A vhost-user back end that cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The socket itself fails.
    #[error("the vhost-user socket cannot be set up")]
    Socket(#[source] io::Error),
    /// A request was refused or not answered.
    #[error("the vhost-user back end failed at {request}")]
    Request {
        /// The request's name in the vhost-user protocol.
        request: &'static str,
        /// What became of it.
        #[source]
        source: ConnectionError,
    },
    /// Something that is needed is not offered.
    #[error("the vhost-user back end does not offer {0}")]
    NotOffered(&'static str),
    /// Fewer queues than the device is to have.
    #[error("the vhost-user back end has {offered} queues where {needed} are needed")]
    Queues {
        /// What the back end has.
        offered: u64,
        /// What the device needs.
        needed: u64,
    },
    /// Memory that only this process can map.
    #[error("guest memory at {0} is not mapped from a file, so the back end cannot map it")]
    PrivateMemory(GuestAddress),
    /// More memory regions than a message holds.
    #[error("guest memory is in {0} regions, and a back end takes {MAX_REGIONS}")]
    Regions(usize),
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

/// What a device needs of a back end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    pub(super) queues: u16,
    /// How many queues each back end for this kind of device has, asked or not.
    pub(super) implied_queues: u16,
    /// Whether the configuration space is the back end's.
    pub(super) config: bool,
}

/// A connected back end.
pub(super) struct Frontend {
    connection: Connection,
    features: u64,
    protocol: u64,
    /// The queues that were given to the back end and not taken back.
    started: Vec<u16>,
}

impl Frontend {
    /// Takes ownership of the back end behind `socket` and agrees on what both sides support.
    pub(super) fn negotiate(
        socket: UnixStream,
        needs: Needs,
        patience: Duration,
    ) -> Result<Self, BackendError> {
        let connection = Connection::new(socket, patience).map_err(BackendError::Socket)?;
        let mut frontend = Frontend {
            connection,
            features: 0,
            protocol: 0,
            started: Vec::new(),
        };
        frontend.tell(Request::SET_OWNER, Body::default())?;
        frontend.features = frontend.ask_number(Request::GET_FEATURES)?;
        if frontend.features & features::VERSION_1 == 0 {
            return Err(BackendError::NotOffered("VIRTIO_F_VERSION_1"));
        }
        if frontend.features & PROTOCOL_FEATURES == 0 {
            return Err(BackendError::NotOffered("protocol features"));
        }
        frontend.agree_on_protocol(needs)?;
        if needs.queues > needs.implied_queues {
            let offered = frontend.ask_number(Request::GET_QUEUE_NUM)?;
            let needed = u64::from(needs.queues);
            if offered < needed {
                return Err(BackendError::Queues { offered, needed });
            }
        }
        Ok(frontend)
    }

    fn agree_on_protocol(&mut self, needs: Needs) -> Result<(), BackendError> {
        let mut needed = Vec::new();
        if needs.queues > needs.implied_queues {
            needed.push((protocol::MQ, "multiple queues"));
        }
        if needs.config {
            needed.push((protocol::CONFIG, "a configuration space"));
        }
        let offered = self.ask_number(Request::GET_PROTOCOL_FEATURES)?;
        let mut accepted = offered & (protocol::REPLY_ACK | protocol::RESET_DEVICE);
        for (feature, name) in needed {
            if offered & feature == 0 {
                return Err(BackendError::NotOffered(name));
            }
            accepted |= feature;
        }
        self.tell(
            Request::SET_PROTOCOL_FEATURES,
            Body::default().u64(accepted),
        )?;
        self.protocol = accepted;
        if accepted & protocol::REPLY_ACK != 0 {
            self.connection.expect_acknowledgements();
        }
        Ok(())
    }

    /// The virtio features that the back end offers, without what belongs to the connection.
    pub(super) fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// A second handle on the connection, to watch it for the back end's end.
    pub(super) fn watched_socket(&self) -> io::Result<UnixStream> {
        self.connection.watched_socket()
    }

    /// The first `LEN` bytes of the configuration space.
    pub(super) fn config<const LEN: usize, const ANSWER: usize>(
        &mut self,
    ) -> Result<[u8; LEN], BackendError> {
        const { assert!(LEN <= MAX_CONFIG && ANSWER == LEN + 12) };
        let len = LEN as u32;
        let body = Body::default().u32(0).u32(len).u32(0).zeroes(LEN);
        let request = Request::GET_CONFIG;
        let answer: [u8; ANSWER] = self
            .connection
            .ask(request, &body)
            .map_err(failed_at(request))?;
        let mut config = [0; LEN];
        config.copy_from_slice(&answer[12..]);
        Ok(config)
    }

    /// Hands memory, queues and interrupt over and lets the back end run.
    pub(super) fn start(&mut self, active: &Active) -> Result<(), BackendError> {
        self.connection.begin();
        let agreed = (active.features | features::VERSION_1) & self.features;
        let features = Body::default().u64(agreed | PROTOCOL_FEATURES);
        self.tell(Request::SET_FEATURES, features)?;
        let (table, files) = memory_table(&active.memory)?;
        self.tell_with(Request::SET_MEM_TABLE, table, &files)?;
        for queue in &active.queues {
            self.started.push(queue.index);
            self.start_queue(queue, &active.memory, active.interrupt.line())?;
        }
        if !self.connection.acknowledges() {
            // Requests are done in order: an answer to this one comes when all are.
            self.ask_number(Request::GET_FEATURES)?;
        }
        Ok(())
    }

    fn start_queue(
        &mut self,
        active: &ActiveQueue,
        memory: &GuestMemory,
        call: &EventFd,
    ) -> Result<(), BackendError> {
        let index = u32::from(active.index);
        let queue = &active.queue;
        // The back end is told where things are in this process, and translates that by way of the memory table.
        let host_address = |address: GuestAddress| {
            memory
                .slice(address, 1)
                .map(|slice| slice.as_ptr() as u64)
                .map_err(|source| BackendError::Ring {
                    index: active.index,
                    source,
                })
        };
        let state = |value: u32| Body::default().u32(index).u32(value);
        let rings = state(0)
            .u64(host_address(queue.desc_table())?)
            .u64(host_address(queue.used_ring())?)
            .u64(host_address(queue.avail_ring())?)
            // No log of what is written.
            .u64(0);
        let event = || Body::default().u64(index.into());

        self.tell(Request::SET_VRING_NUM, state(queue.size().into()))?;
        self.tell(Request::SET_VRING_BASE, state(0))?;
        self.tell(Request::SET_VRING_ADDR, rings)?;
        // The call before the kick: with the kick the ring starts, and what it completes from then on must find its
        // way to the guest.
        self.tell_with(Request::SET_VRING_CALL, event(), &[borrow(call)])?;
        self.tell_with(Request::SET_VRING_KICK, event(), &[borrow(&active.kick)])?;
        self.tell(Request::SET_VRING_ENABLE, state(1))
    }

    /// Takes the queues back. Once this returns the back end touches guest memory no more, or its connection is closed.
    pub(super) fn stop(&mut self) -> Result<(), BackendError> {
        let started = std::mem::take(&mut self.started);
        if started.is_empty() {
            return Ok(());
        }
        self.connection.begin();
        // One that refuses to stop is no better than one that is silent.
        self.stop_queues(&started)
            .inspect_err(|_| self.connection.give_up())
    }

    fn stop_queues(&mut self, queues: &[u16]) -> Result<(), BackendError> {
        for index in queues {
            let state = || Body::default().u32((*index).into()).u32(0);
            self.tell(Request::SET_VRING_ENABLE, state())?;
            // Answered when the ring has stopped.
            let request = Request::GET_VRING_BASE;
            let asked = self.connection.ask::<8>(request, &state());
            asked.map_err(failed_at(request))?;
        }
        if self.protocol & protocol::RESET_DEVICE != 0 {
            self.tell(Request::RESET_DEVICE, Body::default())?;
        }
        Ok(())
    }

    fn tell(&mut self, request: Request, body: Body) -> Result<(), BackendError> {
        self.tell_with(request, body, &[])
    }

    fn tell_with(
        &mut self,
        request: Request,
        body: Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), BackendError> {
        self.connection
            .tell(request, &body, descriptors)
            .map_err(failed_at(request))
    }

    fn ask_number(&mut self, request: Request) -> Result<u64, BackendError> {
        self.connection
            .ask(request, &Body::default())
            .map(u64::from_le_bytes)
            .map_err(failed_at(request))
    }
}

fn failed_at(request: Request) -> impl FnOnce(ConnectionError) -> BackendError {
    move |source| BackendError::Request {
        request: request.name,
        source,
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the event's, which is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) }
}

/// Guest memory as the back end has to map it, and from which files.
fn memory_table(memory: &GuestMemory) -> Result<(Body, Vec<BorrowedFd<'_>>), BackendError> {
    let regions = memory.regions();
    if regions.len() > MAX_REGIONS {
        return Err(BackendError::Regions(regions.len()));
    }
    let mut files = Vec::with_capacity(regions.len());
    // Bounded just above. The second word is padding.
    let mut table = Body::default().u32(regions.len() as u32).u32(0);
    for region in regions {
        let (file, offset) = region
            .file()
            .ok_or(BackendError::PrivateMemory(region.start()))?;
        files.push(file.as_fd());
        table = table
            .u64(region.start().0)
            .u64(region.len())
            .u64(region.host_address() as u64)
            .u64(offset);
    }
    Ok((table, files))
}
