// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits of the network device (virtio 1.3, section 5.1.3).

/// The device completes checksums of packets that it is given.
pub(super) const CSUM: u64 = 1 << 0;
/// The driver takes packets whose checksum is not complete.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
/// The driver can change its offloads while it runs.
pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The configuration holds the largest packet of the network.
pub(super) const MTU: u64 = 1 << 3;
/// The configuration holds the device's address.
pub(super) const MAC: u64 = 1 << 5;
/// The driver takes segments of TCP over IPv4 that are yet to be cut.
pub(super) const GUEST_TSO4: u64 = 1 << 7;
/// As above, over IPv6.
pub(super) const GUEST_TSO6: u64 = 1 << 8;
/// As above, with a congestion mark.
pub(super) const GUEST_ECN: u64 = 1 << 9;
/// The device cuts segments of TCP over IPv4.
pub(super) const HOST_TSO4: u64 = 1 << 11;
/// As above, over IPv6.
pub(super) const HOST_TSO6: u64 = 1 << 12;
/// As above, with a congestion mark.
pub(super) const HOST_ECN: u64 = 1 << 13;
/// A packet may lie in several receive buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
/// The configuration holds the state of the link.
pub(super) const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub(super) const CTRL_VQ: u64 = 1 << 17;
/// The control queue takes receive filters.
pub(super) const CTRL_RX: u64 = 1 << 18;
/// The driver takes datagrams over IPv4 that are yet to be cut.
pub(super) const GUEST_USO4: u64 = 1 << 54;
/// As above, over IPv6.
pub(super) const GUEST_USO6: u64 = 1 << 55;
/// The device cuts datagrams.
pub(super) const HOST_USO: u64 = 1 << 56;

/// What every tap can do.
pub(super) const EVERY_TAP: u64 = CSUM
    | GUEST_CSUM
    | CTRL_GUEST_OFFLOADS
    | MAC
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | CTRL_RX;

/// What a tap can do since Linux 6.2.
pub(super) const UDP_SEGMENTATION: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// What a driver can turn off and on while it runs.
pub(super) const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
