// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The packet header of virtio 1.3, section 5.10.6, and the names of what its fields hold.
//!
//! A header is 44 bytes, little endian. It is decoded once, from a copy: the guest may change its
//! memory at any moment, so nothing here looks at guest memory twice.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 44;

/// The context identifier of the host: what a guest connects to.
pub const HOST_CID: u64 = 2;

/// The lowest context identifier that a guest may have: 0 and 1 are reserved, 2 is the host.
pub const FIRST_GUEST_CID: u64 = 3;

/// The socket type that is served: a stream of bytes (`VIRTIO_VSOCK_TYPE_STREAM`).
pub const TYPE_STREAM: u16 = 1;

/// In [`Header::flags`] of a [`Op::Shutdown`]: the sender will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1 << 0;

/// In [`Header::flags`] of a [`Op::Shutdown`]: the sender will send no more data.
pub const SHUTDOWN_SEND: u32 = 1 << 1;

/// What a packet asks for or says (`virtio_vsock_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Refuses, ends or breaks a connection. It is never answered.
    Rst = 3,
    /// The sender will send, or receive, or both, no more.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Carries nothing but the credit that every packet carries.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation with that number, if the specification has one.
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Rst),
            4 => Some(Self::Shutdown),
            5 => Some(Self::Rw),
            6 => Some(Self::CreditUpdate),
            7 => Some(Self::CreditRequest),
            _ => None,
        }
    }

    /// The number of this operation on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// A decoded header. Every field is as the sender wrote it: nothing has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Context identifier of the sender.
    pub src_cid: u64,
    /// Context identifier of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data that follow the header.
    pub len: u32,
    /// Socket type; see [`TYPE_STREAM`].
    pub socket_type: u16,
    /// Operation; see [`Op::from_number`].
    pub op: u16,
    /// Meaning depends on the operation; see [`SHUTDOWN_RECEIVE`] and [`SHUTDOWN_SEND`].
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's receive buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        Wire::read_from_bytes(bytes).map_or_else(|_| Self::default(), Self::from)
    }

    /// Encodes the header.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(Wire::from(*self))
    }

    /// A packet without data from a port of the host to a port of the guest.
    pub const fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            socket_type: TYPE_STREAM,
            op: op.number(),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Whose connection this packet from the guest belongs to.
    pub const fn ports(&self) -> Ports {
        Ports {
            host: self.dst_port,
            guest: self.src_port,
        }
    }
}

/// The two ports that name a connection. The context identifiers add nothing: one is always the
/// host's and the other always the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

/// A header as it lies in memory.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    src_cid: U64,
    dst_cid: U64,
    src_port: U32,
    dst_port: U32,
    len: U32,
    socket_type: U16,
    op: U16,
    flags: U32,
    buf_alloc: U32,
    fwd_cnt: U32,
}

impl From<Wire> for Header {
    fn from(wire: Wire) -> Self {
        Self {
            src_cid: wire.src_cid.get(),
            dst_cid: wire.dst_cid.get(),
            src_port: wire.src_port.get(),
            dst_port: wire.dst_port.get(),
            len: wire.len.get(),
            socket_type: wire.socket_type.get(),
            op: wire.op.get(),
            flags: wire.flags.get(),
            buf_alloc: wire.buf_alloc.get(),
            fwd_cnt: wire.fwd_cnt.get(),
        }
    }
}

impl From<Header> for Wire {
    fn from(header: Header) -> Self {
        Self {
            src_cid: header.src_cid.into(),
            dst_cid: header.dst_cid.into(),
            src_port: header.src_port.into(),
            dst_port: header.dst_port.into(),
            len: header.len.into(),
            socket_type: header.socket_type.into(),
            op: header.op.into(),
            flags: header.flags.into(),
            buf_alloc: header.buf_alloc.into(),
            fwd_cnt: header.fwd_cnt.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn header_is_laid_out_as_in_the_specification() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            socket_type: 0x4142,
            op: 0x5152,
            flags: 0x6162_6364,
            buf_alloc: 0x7172_7374,
            fwd_cnt: 0x8182_8384,
        };

        let bytes = header.to_bytes();

        #[rustfmt::skip]
        let expected: [u8; HEADER_LEN] = [
            0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
            0x02, 0, 0, 0, 0, 0, 0, 0,
            0x14, 0x13, 0x12, 0x11,
            0x24, 0x23, 0x22, 0x21,
            0x34, 0x33, 0x32, 0x31,
            0x42, 0x41,
            0x52, 0x51,
            0x64, 0x63, 0x62, 0x61,
            0x74, 0x73, 0x72, 0x71,
            0x84, 0x83, 0x82, 0x81,
        ];
        assert_eq!(bytes, expected);
    }

    proptest! {
        #[test]
        fn every_header_survives_decoding_and_encoding(bytes in any::<[u8; 32]>(), rest in any::<[u8; 12]>()) {
            let mut wire = [0; HEADER_LEN];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&rest);

            prop_assert_eq!(Header::from_bytes(&wire).to_bytes(), wire);
        }
    }

    #[rstest]
    #[case(0, None)]
    #[case(1, Some(Op::Request))]
    #[case(2, Some(Op::Response))]
    #[case(3, Some(Op::Rst))]
    #[case(4, Some(Op::Shutdown))]
    #[case(5, Some(Op::Rw))]
    #[case(6, Some(Op::CreditUpdate))]
    #[case(7, Some(Op::CreditRequest))]
    #[case(8, None)]
    #[case(u16::MAX, None)]
    fn operations_have_the_numbers_of_the_specification(
        #[case] number: u16,
        #[case] op: Option<Op>,
    ) {
        assert_eq!(Op::from_number(number), op);
        assert!(op.is_none_or(|op| op.number() == number));
    }
}
