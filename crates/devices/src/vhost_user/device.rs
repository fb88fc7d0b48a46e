// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life cycle of a device with a back end, of whatever kind.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_virtio::{ActivateError, Active, DeviceType, Interrupt, VirtioDevice, Worker};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::frontend::{BackendError, Frontend, Needs};
use crate::config_space;
use crate::serve::{Fault, unwatch, watch};

/// Bytes of a configuration space that a back end is asked for: those of a block device up to
/// `write_zeroes_may_unmap`, which every back end has.
const CONFIG_LEN: usize = 60;

/// A device with a back end that cannot be made or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// No event to report a lost connection with.
    #[error("cannot make an eventfd")]
    Event(#[source] io::Error),
    /// The back end cannot be used.
    #[error("cannot use the back end of {device}")]
    Backend {
        /// What it is a back end of.
        device: String,
        /// Why.
        #[source]
        source: BackendError,
    },
}

/// The back end of a running device closed the connection.
#[derive(Debug, thiserror::Error)]
#[error("the back end of {device} closed its connection")]
struct ConnectionLost {
    device: String,
}

/// What makes a device the kind that it is.
#[derive(Debug)]
pub(crate) struct Kind {
    /// What errors call it.
    pub(crate) name: String,
    /// What the log calls it.
    pub(crate) log: &'static str,
    pub(crate) device_type: DeviceType,
    pub(crate) queue_sizes: Vec<u16>,
    /// How many queues each back end for this kind of device has, asked or not.
    pub(crate) implied_queues: u16,
    /// Features that are offered if the back end offers them.
    pub(crate) backend_features: u64,
    /// Features that are offered whatever the back end says, which is not told of them.
    pub(crate) own_features: u64,
    pub(crate) config: ConfigSpace,
}

/// Where the configuration space comes from.
#[derive(Debug)]
pub(crate) enum ConfigSpace {
    /// From us.
    Own(Vec<u8>),
    /// From the back end, once, when the device is made.
    Backend,
}

/// A virtio device whose queues are served by a vhost-user back end.
pub struct VhostUserDevice {
    kind: Kind,
    space: Vec<u8>,
    frontend: Frontend,
    lost: EventFd,
    fault: Fault,
}

impl fmt::Debug for VhostUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserDevice")
            .field("name", &self.kind.name)
            .field("queues", &self.kind.queue_sizes.len())
            .finish_non_exhaustive()
    }
}

impl VhostUserDevice {
    pub(crate) fn new(
        stream: UnixStream,
        kind: Kind,
        patience: Duration,
    ) -> Result<Self, VhostUserError> {
        let lost = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostUserError::Event)?;
        let (frontend, space) =
            connect(stream, &kind, patience).map_err(|source| VhostUserError::Backend {
                device: kind.name.clone(),
                source,
            })?;
        Ok(Self {
            fault: Fault::new(kind.log),
            kind,
            space,
            frontend,
            lost,
        })
    }

    /// An event that becomes readable when the device cannot be served any more: the back end closed the connection
    /// while the device ran, or could not be started or stopped. Each call gives a handle on the same event.
    ///
    /// # Errors
    ///
    /// The error of duplicating a file descriptor.
    pub fn connection_lost(&self) -> io::Result<EventFd> {
        self.lost.try_clone()
    }

    fn in_backend(&self) -> impl Fn(BackendError) -> VhostUserError + use<> {
        let device = self.kind.name.clone();
        move |source| VhostUserError::Backend {
            device: device.clone(),
            source,
        }
    }

    /// Tells the monitor that the device cannot be served any more.
    fn lose(&self) {
        // A full counter has told it already.
        let _ = self.lost.write(1);
    }

    fn start(&mut self, active: Active) -> Result<Worker, VhostUserError> {
        let in_backend = self.in_backend();
        let socket = self
            .frontend
            .watched_socket()
            .map_err(BackendError::Socket)
            .map_err(&in_backend)?;
        let lost = self.lost.try_clone().map_err(VhostUserError::Event)?;
        // The back end writes to the interrupt's eventfd by itself, so the reason that the driver reads cannot be kept
        // here; it is told "used buffers" each time it asks.
        active.interrupt.always_report_used_buffers();
        self.frontend.start(&active).map_err(in_backend)?;
        Ok(Box::new(ConnectionWatch {
            device: self.kind.name.clone(),
            socket,
            lost,
            interrupt: active.interrupt,
            fault: self.fault.clone(),
        }))
    }
}

fn connect(
    stream: UnixStream,
    kind: &Kind,
    patience: Duration,
) -> Result<(Frontend, Vec<u8>), BackendError> {
    let needs = Needs {
        // Kinds have a few hundred queues at most, since the protocol names them in a byte.
        queues: u16::try_from(kind.queue_sizes.len()).unwrap_or(u16::MAX),
        implied_queues: kind.implied_queues,
        config: matches!(kind.config, ConfigSpace::Backend),
    };
    let mut frontend = Frontend::negotiate(stream, needs, patience)?;
    let space = match &kind.config {
        ConfigSpace::Own(space) => space.clone(),
        ConfigSpace::Backend => frontend
            .config::<CONFIG_LEN, { CONFIG_LEN + 12 }>()?
            .to_vec(),
    };
    Ok((frontend, space))
}

impl VirtioDevice for VhostUserDevice {
    fn device_type(&self) -> DeviceType {
        self.kind.device_type
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.kind.queue_sizes
    }

    fn features(&self) -> u64 {
        self.frontend.features() & self.kind.backend_features | self.kind.own_features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.space, offset, data);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        self.start(active).map(Some).map_err(|error| {
            self.lose();
            ActivateError::device(error)
        })
    }

    fn reset(&mut self) {
        if let Err(error) = self.frontend.stop().map_err(self.in_backend()) {
            self.fault.log(&error);
            self.lose();
        }
    }
}

/// Waits, on the event loop, for a back end to go away.
struct ConnectionWatch {
    device: String,
    socket: UnixStream,
    lost: EventFd,
    interrupt: Interrupt,
    fault: Fault,
}

impl ConnectionWatch {
    /// Only the end of the connection: answers on it belong to whoever sent a request.
    fn event(&self) -> Events {
        Events::new(&self.socket, EventSet::READ_HANG_UP)
    }
}

impl MutEventSubscriber for ConnectionWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = watch(ops, &[self.event()]) {
            self.fault.raise(&self.interrupt, &error);
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        unwatch(ops, &[self.event()]);
        let lost = ConnectionLost {
            device: self.device.clone(),
        };
        // The monitor first: whatever the guest does about it comes after. A full counter has told it already.
        let _ = self.lost.write(1);
        self.fault.raise(&self.interrupt, &lost);
    }
}
