// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file system device (virtio 1.3, section 5.11), served by another process: a
//! [vhost-user front end](crate::vhost_user) with a tag.

mod device;

pub use device::{FsError, MAX_REQUEST_QUEUES, MAX_TAG, file_system};
