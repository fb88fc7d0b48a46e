// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that forwards for its guests would forward for whoever sends it something: here is what keeps it from that.

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{InetHookNumber, TableFlags};

use super::rule::{
    CT_ESTABLISHED_OR_RELATED, CT_IS_DNAT, Direction, Is, connection_state_is,
    connection_status_is, drop, family_is, interface_is, interface_starts_with,
};
use super::{Batch, PREFIX, PRIORITY_FILTER, Place, accept, delete_table, has_table, refused};
use crate::error::NetworkError;
use crate::netlink::Socket;

/// It stays until the host is no router any more, so it is none of the machines'.
const TABLE: &str = "coracle-strangers";

const FORWARD: &str = "forward";

/// Drops what comes in on one of these interfaces, in a family that this host did not forward before, and is for somebody
/// else than guests. Interfaces that are made later are not among them, so that whoever makes networks for others can go on
/// doing so; for these there are answers and published ports, too.
pub(crate) fn keep_strangers_out(
    socket: &mut Socket,
    families: &[bool],
    interfaces: &[String],
) -> Result<(), NetworkError> {
    let failed = |source| refused("keep strangers from being forwarded", source);
    let place = Place::inet("filter", InetHookNumber::Forward, PRIORITY_FILTER);
    let mut batch = Batch::new(NetfilterProtoFamily::Inet, TABLE);
    if has_table(socket, TABLE).map_err(failed)? {
        batch.delete_table();
    }
    batch
        .add_table(
            TableFlags::empty(),
            "this host is a router for machines alone",
        )
        .add_chain(FORWARD, Some(place))
        .add_rule(
            FORWARD,
            [
                interface_starts_with(Direction::Out, Is::Equal, PREFIX),
                accept(),
            ],
        )
        .add_rule(
            FORWARD,
            [connection_state_is(CT_ESTABLISHED_OR_RELATED), accept()],
        )
        .add_rule(FORWARD, [connection_status_is(CT_IS_DNAT), accept()]);
    for interface in interfaces {
        for is_ipv4 in families {
            let rule = [
                interface_is(Direction::In, interface),
                family_is(*is_ipv4),
                drop(),
            ];
            batch.add_rule(FORWARD, rule);
        }
    }
    batch.commit(socket).map_err(failed)
}

/// Removes those rules.
pub(crate) fn let_strangers_in(socket: &mut Socket) -> Result<(), NetworkError> {
    delete_table(socket, NetfilterProtoFamily::Inet, TABLE)
}
