// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio transport over MMIO and validated descriptor chains (virtio 1.3)
