// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serves a [`Server`] to a virtual machine in another process, over vhost-user.

mod backend;
mod queue;
mod ring;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as BackendError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::filesystem::FileSystem;
use crate::server::Server;
use backend::Backend;
pub use queue::QueueFault;

/// How a file system is served.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Queues for requests, beside the one for requests that need no answer. Linux spreads its requests over
    /// several since 6.11, and uses only the first before.
    pub request_queues: u16,
    /// The most entries that a queue may have: a power of two. Each request of 1 MiB takes up to 260.
    pub queue_size: u16,
    /// Threads among which the queues are divided.
    pub threads: u16,
    /// For how long to wait for the virtual machine to connect. A machine that died before will not.
    pub connect_timeout: Duration,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            request_queues: 1,
            queue_size: 1024,
            threads: 1,
            connect_timeout: Duration::from_secs(60),
        }
    }
}

/// Why serving ended before the virtual machine did.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration cannot be met.
    #[error(
        "{request_queues} request queues of {queue_size} entries cannot be served: there may be 1 to 63 queues, \
         of a power of two up to 32768 entries"
    )]
    Config {
        /// Number of request queues.
        request_queues: u16,
        /// Size of each.
        queue_size: u16,
    },
    /// Nobody connected.
    #[error("no virtual machine has connected to the file server within {} s", .waited.as_secs())]
    NobodyConnected {
        /// For how long the server waited.
        waited: Duration,
    },
    /// The listening socket cannot be waited for.
    #[error("cannot wait for a virtual machine on the file server's socket")]
    Wait(#[source] Errno),
    /// The vhost-user connection failed; the text is of the library that speaks it.
    #[error("the file server's connection to the virtual machine failed: {reason}")]
    Connection {
        /// What the library says.
        reason: String,
    },
    /// The guest's driver has written something into a queue that cannot be served on.
    #[error("the guest's driver has broken the file server's queue {queue}")]
    Queue {
        /// Index of the queue.
        queue: usize,
        /// What is wrong with it.
        source: QueueFault,
    },
    /// The virtual machine gave something as a queue's kick that cannot be read like an eventfd.
    #[error("the kicks of the file server's queue {queue} cannot be read")]
    Kick {
        /// Index of the queue.
        queue: usize,
        /// Why.
        source: io::Error,
    },
    /// The file system has panicked in a request, and its queue is served no longer.
    #[error("the file server has panicked in a request of queue {queue}")]
    Panicked {
        /// Index of the queue.
        queue: usize,
    },
}

/// Serves the file system to the one virtual machine that connects to `listener`, until it hangs up.
///
/// # Errors
/// [`DaemonError`]; when the virtual machine hangs up, that is none.
pub fn serve<F: FileSystem + 'static>(
    listener: UnixListener,
    server: Server<F>,
    config: &DaemonConfig,
) -> Result<(), DaemonError> {
    let backend = Arc::new(Backend::new(server, config)?);
    await_connection(&listener, config.connect_timeout)?;

    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("fs-control".to_owned(), Arc::clone(&backend), memory)
        .map_err(connection)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(connection)?;
    if let Some(handle) = daemon.shutdown_handle() {
        backend.hang_up_with(handle);
    }
    let ended = daemon.wait();
    // Lets the threads end that serve the queues, and waits for them.
    drop(daemon);

    if let Some(fault) = backend.take_fault() {
        return Err(fault);
    }
    match ended {
        // However the virtual machine ends, it ends the connection.
        Ok(())
        | Err(BackendError::HandleRequest(
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(error) => Err(connection(error)),
    }
}

fn await_connection(listener: &UnixListener, timeout: Duration) -> Result<(), DaemonError> {
    let limit = Timespec::try_from(timeout).ok();
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Err(DaemonError::NobodyConnected { waited: timeout }),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(DaemonError::Wait(error)),
        }
    }
}

fn connection(error: BackendError) -> DaemonError {
    DaemonError::Connection {
        reason: error.to_string(),
    }
}
