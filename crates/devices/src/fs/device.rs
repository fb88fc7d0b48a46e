// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device's configuration space and life cycle.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;

use coracle_virtio::features;
use coracle_virtio::{ActivateError, Active, DeviceType, Interrupt, VirtioDevice, Worker};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, BackendError};
use crate::serve::{Fault, unwatch, watch};

/// Bytes of the tag in the configuration space (virtio 1.3, section 5.11.4).
pub const MAX_TAG: usize = 36;
/// The most request queues: a vhost-user message names a queue in one byte, and the first is the
/// high-priority queue.
pub const MAX_REQUEST_QUEUES: u16 = 255;

const QUEUE_SIZE: u16 = 128;
/// The tag, then the number of request queues as 32 bits.
const CONFIG_SIZE: usize = MAX_TAG + 4;

/// A file system device that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag does not fit, or would end early.
    #[error("file system tag {0:?} is not 1 to {MAX_TAG} bytes without NUL")]
    Tag(String),
    /// No request queue, or more than the protocol can name.
    #[error("{0} request queues are not between 1 and {MAX_REQUEST_QUEUES}")]
    RequestQueues(u16),
    /// No event to report a lost connection with.
    #[error("cannot make an eventfd")]
    Event(#[source] io::Error),
    /// The backend cannot be used.
    #[error("cannot use the backend of file system {tag:?}")]
    Backend {
        /// The device's tag.
        tag: String,
        /// Why.
        #[source]
        source: BackendError,
    },
}

/// The backend of a running device closed the connection.
#[derive(Debug, thiserror::Error)]
#[error("the backend of file system {tag:?} closed its connection")]
struct ConnectionLost {
    tag: String,
}

/// A virtio-fs device whose queues are served by a vhost-user backend.
pub struct VhostUserFs {
    tag: String,
    config: [u8; CONFIG_SIZE],
    queue_sizes: Vec<u16>,
    backend: Backend,
    lost: EventFd,
    fault: Fault,
}

impl fmt::Debug for VhostUserFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserFs")
            .field("tag", &self.tag)
            .field("queues", &self.queue_sizes.len())
            .finish_non_exhaustive()
    }
}

impl VhostUserFs {
    /// A device for the backend that listens at the other end of `stream`, with which features
    /// are agreed on before this returns.
    ///
    /// The guest mounts it by `tag`, 1 to [`MAX_TAG`] bytes. Besides `request_queues` (1 to
    /// [`MAX_REQUEST_QUEUES`]) the device has a high-priority queue.
    ///
    /// # Errors
    ///
    /// [`FsError`] for a tag or a queue count that is not possible, or a backend that does not
    /// answer or lacks what is needed: VIRTIO_F_VERSION_1, enough queues, and the protocol
    /// features MQ and REPLY_ACK.
    pub fn new(stream: UnixStream, tag: &str, request_queues: u16) -> Result<Self, FsError> {
        let config = config_space(tag, request_queues)?;
        // Cannot overflow: config_space bounded the count.
        let queues = request_queues + 1;
        let lost = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(FsError::Event)?;
        let backend = Backend::negotiate(stream, queues).map_err(|source| FsError::Backend {
            tag: tag.to_owned(),
            source,
        })?;
        Ok(VhostUserFs {
            tag: tag.to_owned(),
            config,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            backend,
            lost,
            fault: Fault::new("fs"),
        })
    }

    /// The tag that the guest mounts the file system by.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// An event that becomes readable when the file system cannot be served any more: the
    /// backend closed the connection while the device ran, or could not be started. Each call
    /// gives a handle on the same event.
    ///
    /// # Errors
    ///
    /// The error of duplicating a file descriptor.
    pub fn connection_lost(&self) -> io::Result<EventFd> {
        self.lost.try_clone()
    }

    fn start(&mut self, active: Active) -> Result<Worker, FsError> {
        let in_backend = |source| FsError::Backend {
            tag: self.tag.clone(),
            source,
        };
        let socket = self
            .backend
            .watched_socket()
            .map_err(BackendError::Socket)
            .map_err(in_backend)?;
        let lost = self.lost.try_clone().map_err(FsError::Event)?;
        // The backend writes to the interrupt's eventfd by itself, so the reason that the driver
        // reads cannot be kept here; it is told "used buffers" each time it asks.
        active.interrupt.always_report_used_buffers();
        self.backend.start(&active).map_err(in_backend)?;
        Ok(Box::new(ConnectionWatch {
            tag: self.tag.clone(),
            socket,
            lost,
            interrupt: active.interrupt,
            fault: self.fault.clone(),
        }))
    }
}

impl VirtioDevice for VhostUserFs {
    fn device_type(&self) -> DeviceType {
        DeviceType::FileSystem
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.backend.features() & features::RING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(CONFIG_SIZE);
        let field = self.config.get(from..).unwrap_or_default();
        let count = field.len().min(data.len());
        data[..count].copy_from_slice(&field[..count]);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        self.start(active).map(Some).map_err(|error| {
            // A full counter has told it already.
            let _ = self.lost.write(1);
            ActivateError::device(error)
        })
    }

    fn reset(&mut self) {
        self.backend.stop();
    }
}

fn config_space(tag: &str, request_queues: u16) -> Result<[u8; CONFIG_SIZE], FsError> {
    if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
        return Err(FsError::Tag(tag.to_owned()));
    }
    if request_queues == 0 || request_queues > MAX_REQUEST_QUEUES {
        return Err(FsError::RequestQueues(request_queues));
    }
    let mut config = [0; CONFIG_SIZE];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    config[MAX_TAG..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
    Ok(config)
}

/// Waits, on the event loop, for a backend to go away.
struct ConnectionWatch {
    tag: String,
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
            tag: self.tag.clone(),
        };
        self.fault.raise(&self.interrupt, &lost);
        // A full counter has told it already.
        let _ = self.lost.write(1);
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::short("share")]
    #[case::longest("123456789012345678901234567890123456")]
    #[case::not_ascii("gemeinsame-dateien-für-die-küche")]
    fn tag_is_padded_with_nul(#[case] tag: &str) {
        let config = config_space(tag, 1).unwrap();

        assert_eq!(config[..tag.len()], *tag.as_bytes());
        assert!(config[tag.len()..MAX_TAG].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn queue_count_follows_the_tag() {
        let config = config_space("share", 254).unwrap();

        assert_eq!(config[MAX_TAG..], [254, 0, 0, 0]);
    }

    #[rstest]
    #[case::empty("")]
    #[case::too_long("1234567890123456789012345678901234567")]
    #[case::too_long_in_bytes("äöüäöüäöüäöüäöüäöüä")]
    #[case::nul("sh\0are")]
    fn impossible_tag_is_refused(#[case] tag: &str) {
        assert!(matches!(config_space(tag, 1), Err(FsError::Tag(_))));
    }

    #[rstest]
    #[case::none(0)]
    #[case::beyond_the_protocol(MAX_REQUEST_QUEUES + 1)]
    #[case::most(u16::MAX)]
    fn impossible_queue_count_is_refused(#[case] count: u16) {
        let error = config_space("share", count).unwrap_err();

        assert!(matches!(error, FsError::RequestQueues(n) if n == count));
    }
}
