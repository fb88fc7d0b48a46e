// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header before each packet (virtio 1.3, section 5.1.6), and which of its offloads are agreed on.

use super::super::features;

/// Bytes of the header.
pub const HEADER_LEN: usize = 12;

/// The most bytes of a packet, its header included: the longest IP packet in an Ethernet frame
/// with a VLAN tag.
pub const MAX_PACKET: usize = HEADER_LEN + ETHERNET + VLAN_TAG + 65_535;

/// The least bytes of a packet, its header included: an Ethernet header and nothing in it.
pub(super) const MIN_PACKET: usize = HEADER_LEN + ETHERNET;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;

/// Flag: a checksum is yet to be completed.
pub(super) const NEEDS_CSUM: u8 = 1;
/// Flag: the checksum was found right.
const DATA_VALID: u8 = 2;

/// Segmentation: none, and the kinds there are.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Added to a kind of TCP: the packet has a congestion mark.
const GSO_ECN: u8 = 0x80;

/// Offsets in bytes.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const NUM_BUFFERS: usize = 10;

/// What the sender of a packet may leave to its receiver, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Completing a checksum. Everything else needs it too.
    pub checksum: bool,
    /// Cutting TCP over IPv4 into segments.
    pub tso4: bool,
    /// Cutting TCP over IPv6 into segments.
    pub tso6: bool,
    /// Cutting TCP with a congestion mark.
    pub ecn: bool,
    /// Cutting UDP into datagrams.
    pub uso: bool,
}

impl Offloads {
    /// What the driver may leave to the device, with these features agreed on.
    #[must_use]
    pub fn to_device(agreed: u64) -> Self {
        let has = |feature| agreed & feature == feature;
        Self {
            checksum: has(features::CSUM),
            tso4: has(features::HOST_TSO4),
            tso6: has(features::HOST_TSO6),
            ecn: has(features::HOST_ECN),
            uso: has(features::HOST_USO),
        }
        .consistent()
    }

    /// What the device may leave to the driver, with these features agreed on.
    #[must_use]
    pub fn to_driver(agreed: u64) -> Self {
        let has = |feature| agreed & feature == feature;
        Self {
            checksum: has(features::GUEST_CSUM),
            tso4: has(features::GUEST_TSO4),
            tso6: has(features::GUEST_TSO6),
            ecn: has(features::GUEST_ECN),
            // The tap has them together or not at all.
            uso: has(features::GUEST_USO4 | features::GUEST_USO6),
        }
        .consistent()
    }

    /// A driver may not accept a feature without those that it needs (section 5.1.3.1). If it does,
    /// it has not got it.
    const fn consistent(self) -> Self {
        let Self {
            checksum,
            tso4,
            tso6,
            ecn,
            uso,
        } = self;
        Self {
            checksum,
            tso4: tso4 && checksum,
            tso6: tso6 && checksum,
            ecn: ecn && checksum && (tso4 || tso6),
            uso: uso && checksum,
        }
    }
}

/// A header in our own memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header(pub(super) [u8; HEADER_LEN]);

impl Header {
    /// The flags and the kind of segmentation.
    pub(super) const fn offloads(&self) -> (u8, u8) {
        (self.0[FLAGS], self.0[GSO_TYPE])
    }

    /// Whether it asks for no more than was agreed on.
    pub(super) const fn is_within(&self, agreed: Offloads) -> bool {
        let (flags, gso_type) = self.offloads();
        if flags & NEEDS_CSUM != 0 && !agreed.checksum {
            return false;
        }
        let (kind, ecn) = (gso_type & !GSO_ECN, gso_type & GSO_ECN != 0);
        match kind {
            GSO_NONE => !ecn,
            GSO_TCPV4 => agreed.tso4 && (agreed.ecn || !ecn),
            GSO_TCPV6 => agreed.tso6 && (agreed.ecn || !ecn),
            GSO_UDP_L4 => agreed.uso && !ecn,
            _ => false,
        }
    }

    /// What goes to the tap: a device ignores flags that are not meant for it (section 5.1.6.2.2).
    pub(super) const fn make_outgoing(&mut self) {
        self.0[FLAGS] &= NEEDS_CSUM;
        self.set_buffers(0);
    }

    /// What goes to the driver, for a packet in so many chains (section 5.1.6.4.1).
    pub(super) const fn make_incoming(&mut self, agreed: Offloads, buffers: u16) {
        self.0[FLAGS] &= if agreed.checksum {
            NEEDS_CSUM | DATA_VALID
        } else {
            0
        };
        self.set_buffers(buffers);
    }

    const fn set_buffers(&mut self, buffers: u16) {
        let [low, high] = buffers.to_le_bytes();
        self.0[NUM_BUFFERS] = low;
        self.0[NUM_BUFFERS + 1] = high;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NONE: Offloads = Offloads {
        checksum: false,
        tso4: false,
        tso6: false,
        ecn: false,
        uso: false,
    };
    const CHECKSUM: Offloads = Offloads {
        checksum: true,
        ..NONE
    };

    fn header(flags: u8, gso_type: u8) -> Header {
        let mut header = Header([0xff; HEADER_LEN]);
        header.0[..2].copy_from_slice(&[flags, gso_type]);
        header
    }

    #[rstest]
    #[case::nothing_asked(0, GSO_NONE, NONE, true)]
    #[case::checksum_agreed(NEEDS_CSUM, GSO_NONE, CHECKSUM, true)]
    #[case::checksum_not_agreed(NEEDS_CSUM, GSO_NONE, NONE, false)]
    #[case::unknown_flags_do_not_count(!NEEDS_CSUM, GSO_NONE, NONE, true)]
    #[case::tcp4_agreed(NEEDS_CSUM, GSO_TCPV4, Offloads { tso4: true, ..CHECKSUM }, true)]
    #[case::tcp4_not_agreed(NEEDS_CSUM, GSO_TCPV4, Offloads { tso6: true, ..CHECKSUM }, false)]
    #[case::tcp6_agreed(NEEDS_CSUM, GSO_TCPV6, Offloads { tso6: true, ..CHECKSUM }, true)]
    #[case::tcp6_not_agreed(NEEDS_CSUM, GSO_TCPV6, Offloads { tso4: true, ..CHECKSUM }, false)]
    #[case::udp_agreed(NEEDS_CSUM, GSO_UDP_L4, Offloads { uso: true, ..CHECKSUM }, true)]
    #[case::udp_not_agreed(NEEDS_CSUM, GSO_UDP_L4, Offloads { tso4: true, ..CHECKSUM }, false)]
    #[case::mark_agreed(0, GSO_TCPV4 | GSO_ECN, Offloads { tso4: true, ecn: true, ..CHECKSUM }, true)]
    #[case::mark_not_agreed(0, GSO_TCPV4 | GSO_ECN, Offloads { tso4: true, ..CHECKSUM }, false)]
    #[case::mark_without_tcp(0, GSO_ECN, Offloads { tso4: true, ecn: true, ..CHECKSUM }, false)]
    #[case::fragmentation_is_never_agreed(0, 3, Offloads { uso: true, ..CHECKSUM }, false)]
    #[case::unknown_kind(0, 0x7f, Offloads { tso4: true, ecn: true, ..CHECKSUM }, false)]
    fn header_asks_for_what_was_agreed_on(
        #[case] flags: u8,
        #[case] gso_type: u8,
        #[case] agreed: Offloads,
        #[case] expected: bool,
    ) {
        assert_eq!(header(flags, gso_type).is_within(agreed), expected);
    }

    #[rstest]
    #[case::segmentation_without_checksum(features::GUEST_TSO4 | features::GUEST_USO4 | features::GUEST_USO6, NONE)]
    #[case::mark_without_segmentation(features::GUEST_CSUM | features::GUEST_ECN, CHECKSUM)]
    #[case::one_kind_of_udp(features::GUEST_CSUM | features::GUEST_USO4, CHECKSUM)]
    #[case::both_kinds_of_udp(
        features::GUEST_CSUM | features::GUEST_USO4 | features::GUEST_USO6,
        Offloads { uso: true, ..CHECKSUM }
    )]
    #[case::other_direction(features::CSUM | features::HOST_TSO4, NONE)]
    fn feature_without_those_that_it_needs_is_not_had(
        #[case] agreed: u64,
        #[case] expected: Offloads,
    ) {
        assert_eq!(Offloads::to_driver(agreed), expected);
    }

    #[rstest]
    #[case::agreed(CHECKSUM, NEEDS_CSUM | DATA_VALID)]
    #[case::not_agreed(NONE, 0)]
    fn driver_sees_flags_that_it_knows(#[case] agreed: Offloads, #[case] flags: u8) {
        let mut header = header(0xff, GSO_NONE);

        header.make_incoming(agreed, 0x0203);

        assert_eq!(header.offloads(), (flags, GSO_NONE));
        assert_eq!(header.0[NUM_BUFFERS..], [3, 2]);
    }

    #[test]
    fn tap_sees_what_is_meant_for_it() {
        let mut header = header(0xff, GSO_TCPV4);

        header.make_outgoing();

        assert_eq!(header.offloads(), (NEEDS_CSUM, GSO_TCPV4));
        assert_eq!(header.0[NUM_BUFFERS..], [0, 0]);
    }
}
