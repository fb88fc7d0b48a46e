// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device (virtio 1.3, section 5.1), over a tap of the host.
//!
//! Packets go between the guest's buffers and the tap in one system call each, without being
//! copied in between. Only the header of twelve bytes before each packet is looked at, in a copy
//! of our own, so that the guest cannot change what was checked: it says which checksum and which
//! segmentation is left to the other side, and neither side gets what it has not agreed to. What
//! the header says about the packet itself is checked by the tap.
//!
//! Offered are checksum and segmentation offloads in both directions (TCP over IPv4 and IPv6 with
//! ECN, and UDP where the host's kernel can), mergeable receive buffers, the state of the link, and a
//! control queue whose filters are accepted without effect: the tap filters nothing. There is one
//! pair of queues.
//!
//! - A guest that floods is busy with itself: a turn on the event loop has a limit of packets.
//! - A guest without receive buffers is not woken for: the tap is not watched until it gives some,
//!   and what arrives meanwhile waits in the tap, or is dropped there.
//! - A packet that cannot be sent is dropped. A broken ring or chain takes the device out of
//!   service (DEVICE_NEEDS_RESET).
//! - A tap that is deleted takes the link down, which the driver is told; the guest goes on.

mod backend;
mod device;
mod features;
mod queue;
mod worker;

pub use backend::TapError;
pub use device::{MIN_MTU, Net, NetError};
pub use queue::{
    ControlCommand, ControlError, HEADER_LEN, MAX_PACKET, Offloads, Outgoing, PacketError,
    ReceiveError, Received, Receiver, Room, Sender, control_answer, control_command,
};
