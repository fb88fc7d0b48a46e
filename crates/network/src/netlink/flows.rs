// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flows that the kernel tracks. For UDP it decides once where a flow goes, and stays with that for as long as packets come,
//! whatever the rules say by then.

use std::io;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::Socket;

impl Socket {
    /// Forgets all UDP flows that were sent to one of these ports: their next packets are decided anew.
    pub(crate) fn forget_udp_flows(&mut self, is_port: impl Fn(u16) -> bool) -> io::Result<()> {
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let request = message(family, all_udp());
            let sent = |flow: NetfilterMessage| match flow.inner {
                NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
                    sent_to_port(attributes, &is_port)
                }
                _ => None,
            };
            for sent in self.pick(request, sent)? {
                let delete = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(sent)]);
                match self.change(message(family, delete), 0) {
                    // It ended by itself.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}

fn message(family: NetfilterProtoFamily, inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// Asks for flows of UDP alone: a router has a million others. The library has no type for `CTA_FILTER` of
/// `linux/netfilter/nfnetlink_conntrack.h` (Linux 5.8).
fn all_udp() -> ConntrackMessage {
    const GET: u8 = 1;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_FILTER: u16 = 25;
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    const BY_PROTOCOL: u32 = 1 << 3;
    let number = encoded(DefaultNla::new(CTA_PROTO_NUM, vec![Protocol::Udp.into()]));
    let protocol = encoded(DefaultNla::new(CTA_TUPLE_PROTO | NLA_F_NESTED, number));
    let flags = BY_PROTOCOL.to_ne_bytes().to_vec();
    let flags = encoded(DefaultNla::new(CTA_FILTER_ORIG_FLAGS, flags));
    ConntrackMessage::Other {
        message_type: GET,
        attributes: vec![
            DefaultNla::new(CTA_TUPLE_ORIG | NLA_F_NESTED, protocol),
            DefaultNla::new(CTA_FILTER | NLA_F_NESTED, flags),
        ],
    }
}

fn encoded(attribute: DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// What was sent, if it was to one of these ports of UDP.
fn sent_to_port(
    attributes: Vec<ConntrackAttribute>,
    is_port: impl Fn(u16) -> bool,
) -> Option<Vec<Tuple>> {
    attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => Some(tuples),
            _ => None,
        })
        .filter(|tuples| is_udp_to(tuples, is_port))
}

fn is_udp_to(tuples: &[Tuple], is_port: impl Fn(u16) -> bool) -> bool {
    tuples.iter().any(|tuple| match tuple {
        Tuple::Proto(parts) => {
            parts.contains(&ProtoTuple::Protocol(Protocol::Udp))
                && parts
                    .iter()
                    .any(|part| matches!(part, ProtoTuple::DestinationPort(port) if is_port(*port)))
        }
        _ => false,
    })
}
