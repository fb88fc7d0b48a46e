// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-fs backend: FUSE protocol, pass-through file system and vhost-user daemon
