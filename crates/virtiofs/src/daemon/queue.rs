// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes requests from a queue and puts them back answered.
//!
//! Of `virtio-queue` only the head of a chain is taken. The chain itself is walked and checked by
//! [`coracle_virtio::walk`], which says what is wrong with a broken one instead of cutting it short.

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, ChainError, walk};
use thiserror::Error;
use vhost_user_backend::VringT;
use virtio_queue::{QueueOwnedT, QueueT};

use super::ring::Ring;
use crate::filesystem::FileSystem;
use crate::server::{Scratch, Server};

/// What is wrong with a queue.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QueueFault {
    /// The rings cannot be read or written as they say they are.
    #[error("its rings do not hold together")]
    Ring(#[source] virtio_queue::Error),
    /// The chain that starts at `head` is broken.
    #[error("its descriptor chain {head} is broken")]
    Chain {
        /// Index of the first descriptor.
        head: u16,
        /// What is wrong with it.
        source: ChainError,
    },
}

/// What one thread uses for one request after the other.
#[derive(Debug, Default)]
pub(super) struct Workbench {
    chain: Chain,
    scratch: Scratch,
}

/// Serves the queue until it is empty or stopped.
///
/// The queue is locked while a request is served and free in between, so that the virtual machine can stop it.
pub(super) fn drain<F: FileSystem>(
    server: &Server<F>,
    ring: &Ring,
    memory: &GuestMemory,
    indirect: bool,
    bench: &mut Workbench,
) -> Result<(), QueueFault> {
    loop {
        ring.disable_notification().map_err(QueueFault::Ring)?;
        while serve_next(server, ring, memory, indirect, bench)? {}
        // The driver may have added a request just before it was asked to kick again.
        if !is_running(ring) || !ring.enable_notification().map_err(QueueFault::Ring)? {
            return Ok(());
        }
    }
}

/// Serves one request; says whether there was one.
fn serve_next<F: FileSystem>(
    server: &Server<F>,
    ring: &Ring,
    memory: &GuestMemory,
    indirect: bool,
    Workbench { chain, scratch }: &mut Workbench,
) -> Result<bool, QueueFault> {
    let mut state = ring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return Ok(false);
    }
    let queue = state.get_queue_mut();
    // Fails where more requests are claimed than the ring holds; `pop_descriptor_chain` would say "none"
    // while `enable_notification` says "some", for ever.
    let next = queue
        .iter(memory.as_vm_memory())
        .map_err(QueueFault::Ring)?
        .next();
    let Some(head) = next.map(|chain| chain.head_index()) else {
        return Ok(false);
    };

    let table = GuestAddress(queue.desc_table());
    walk(memory, table, queue.size(), head, indirect, chain)
        .map_err(|source| QueueFault::Chain { head, source })?;
    let written = server.handle(chain, scratch);

    queue
        .add_used(memory.as_vm_memory(), head, written)
        .map_err(QueueFault::Ring)?;
    let told = queue
        .needs_notification(memory.as_vm_memory())
        .map_err(QueueFault::Ring)?;
    if told && let Err(error) = state.signal_used_queue() {
        tracing::warn!(%error, "the virtual machine cannot be told of an answered request");
    }
    Ok(true)
}

fn is_running(ring: &Ring) -> bool {
    let state = ring.get_ref();
    state.is_enabled() && state.get_queue().ready()
}
