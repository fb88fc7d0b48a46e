// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the queues hold: packets and commands as chains, without the tap, threads or KVM.

mod control;
mod header;
mod ranges;
mod receive;
mod transmit;

pub use control::{
    Command as ControlCommand, ControlError, answer as control_answer, command as control_command,
};
pub use header::{HEADER_LEN, MAX_PACKET, Offloads};
pub use receive::{ReceiveError, Received, Receiver, Room};
pub use transmit::{Outgoing, PacketError, Sender};

#[cfg(test)]
pub(super) mod testing {
    use std::os::fd::OwnedFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::HEADER_LEN;

    /// A header that leaves nothing to others, with all that they do not look at set.
    pub(super) const HEADER: [u8; HEADER_LEN] = [0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0];

    /// What keeps packets apart as a tap does: both ends.
    pub(in super::super) fn link() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }
}
