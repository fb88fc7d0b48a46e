// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device's tag, queues and configuration space.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_virtio::{DeviceType, features};

use crate::vhost_user::{ConfigSpace, Kind, VhostUserDevice, VhostUserError};

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
#[non_exhaustive]
pub enum FsError {
    /// The tag does not fit, or would end early.
    #[error("file system tag {0:?} is not 1 to {MAX_TAG} bytes without NUL")]
    Tag(String),
    /// No request queue, or more than the protocol can name.
    #[error("{0} request queues are not between 1 and {MAX_REQUEST_QUEUES}")]
    RequestQueues(u16),
    /// The back end cannot be used.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
}

/// A file system device for the back end at the other end of `stream`, with which features are
/// agreed on before this returns, within `patience`.
///
/// The guest mounts it by `tag`, 1 to [`MAX_TAG`] bytes. Besides `request_queues` (1 to
/// [`MAX_REQUEST_QUEUES`]) the device has a high-priority queue.
///
/// # Errors
///
/// [`FsError`] for a tag or a queue count that is not possible, or a back end that does not
/// answer or lacks what is needed: VIRTIO_F_VERSION_1, enough queues, and the protocol feature
/// MQ.
pub fn file_system(
    stream: UnixStream,
    tag: &str,
    request_queues: u16,
    patience: Duration,
) -> Result<VhostUserDevice, FsError> {
    let config = config_space(tag, request_queues)?;
    let kind = Kind {
        name: format!("the file system {tag:?}"),
        log: "fs",
        device_type: DeviceType::FileSystem,
        // Cannot overflow: config_space bounded the count.
        queue_sizes: vec![QUEUE_SIZE; usize::from(request_queues) + 1],
        implied_queues: 1,
        backend_features: features::RING,
        own_features: 0,
        config: ConfigSpace::Own(config.to_vec()),
    };
    Ok(VhostUserDevice::new(stream, kind, patience)?)
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
