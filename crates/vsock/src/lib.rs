// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio-vsock: packets, connections and a multiplexer to host Unix sockets
