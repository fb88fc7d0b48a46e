// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the kernel's first user process to a service that the host can call.

use std::convert::Infallible;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use coracle_agent_api::{AGENT_PORT, Hello, READY_PORT, SHARE_PATH, methods};
use thiserror::Error;

use crate::cgroup::{self, Hierarchy};
use crate::container::Containers;
use crate::modules::{self, ModuleError};
use crate::reaper::Reaper;
use crate::service::Service;
use crate::{network, vsock};

mod file_systems;

/// Why the guest could not be made ready.
#[derive(Debug, Error)]
pub enum BootError {
    /// The root could not be moved out of the initramfs.
    #[error("cannot leave the initramfs")]
    Root(#[source] io::Error),
    /// A file system of the guest could not be mounted.
    #[error("cannot mount {kind} on {target}")]
    Mount {
        /// Type of the file system.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A module could not be loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// There is no loopback interface.
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
    /// The cgroup of the containers could not be made.
    #[error("cannot set up the cgroups")]
    Cgroups(#[source] io::Error),
    /// The host could not call.
    #[error("cannot listen on vsock port {AGENT_PORT}")]
    Listen(#[source] io::Error),
    /// The service could not be started.
    #[error("cannot serve")]
    Serve(#[source] ttrpc::Error),
    /// The host could not be told.
    #[error("cannot tell the host on vsock port {READY_PORT} that the agent is ready")]
    Ready(#[source] io::Error),
    /// Children could not be waited for.
    #[error("cannot wait for children")]
    Reap(#[source] io::Error),
}

/// Makes the guest ready and serves the host. Returns only if that fails.
///
/// # Errors
///
/// [`BootError`] says which step failed.
pub fn run() -> Result<Infallible, BootError> {
    file_systems::leave_initramfs().map_err(BootError::Root)?;
    // The device file system has the kernel's log, which tells if a module fails; nothing else is needed before modules.
    file_systems::mount_devices()?;
    modules::load_all(Path::new(modules::PACKED))?;
    file_systems::mount_others()?;
    modules::load_packed_drivers()?;
    network::bring_loopback_up().map_err(BootError::Loopback)?;
    let hierarchy =
        Hierarchy::set_up(Path::new(cgroup::MOUNT_POINT)).map_err(BootError::Cgroups)?;

    let reaper = Arc::new(Reaper::default());
    let containers = Containers::new(Arc::clone(&reaper), hierarchy, SHARE_PATH.to_owned());
    // Both are kept for as long as this function does not return.
    let _server = serve(Service::new(containers))?;
    let _ready = tell_host().map_err(BootError::Ready)?;
    reaper.run().map_err(BootError::Reap)
}

fn serve(service: Service) -> Result<ttrpc::Server, BootError> {
    let listener = vsock::listen(AGENT_PORT).map_err(BootError::Listen)?;
    // The server keeps the listener until the guest ends.
    let mut server = ttrpc::Server::new()
        .add_listener(listener.into_raw_fd())
        .map_err(BootError::Serve)?
        .register_service(methods(Arc::new(service)));
    server = server.set_accept_hook(vsock::HostOnly);
    server.start().map_err(BootError::Serve)?;
    Ok(server)
}

/// Tells the host that the agent is ready. The connection stays: when it ends, so has the agent.
fn tell_host() -> io::Result<OwnedFd> {
    let stream = std::fs::File::from(vsock::connect_to_host(READY_PORT)?);
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    hello.write(&stream)?;
    Ok(stream.into())
}
