// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flows that the kernel tracks. For UDP it decides once where a flow goes, and stays with that for as long as packets come,
//! whatever the rules say by then.

use std::io;

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
            let request = message(family, ConntrackMessage::Get(Vec::new()));
            for flow in self.list(request)? {
                let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                    flow.inner
                else {
                    continue;
                };
                let Some(sent) = attributes
                    .into_iter()
                    .find_map(|attribute| match attribute {
                        ConntrackAttribute::CtaTupleOrig(tuples) => Some(tuples),
                        _ => None,
                    })
                else {
                    continue;
                };
                if !is_udp_to(&sent, &is_port) {
                    continue;
                }
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
