// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio and legacy devices for lightweight virtual machines
