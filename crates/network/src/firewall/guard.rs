// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest may send at all: looked at where its tap hands it to this host, before anything else of the host sees it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::DevHookNumber;

use super::rule::{arp_sender_is, destination_is_in, drop, protocol_is, source_of_packet_is};
use super::{OwnTable, Place, accept};
use crate::error::NetworkError;

const INGRESS: &str = "ingress";

/// What concerns a guest in one family.
pub(crate) struct Side {
    /// The guest's address.
    pub(crate) own: IpAddr,
    pub(crate) gateway: IpAddr,
    /// Where the guests are that it is kept from.
    pub(crate) others: Option<IpNet>,
}

/// Lets a guest send in the name of its own addresses alone, be it packets or questions for Ethernet addresses, and nothing to
/// the host's loopback addresses or to guests that it is kept from. Whatever it forges is neither noted down (as a neighbour,
/// or a connection) nor answered.
///
/// The table is the machine's own. So it stands although somebody flushes all others, and those kernel settings of the tap
/// that would be holes without it may follow once it is there.
pub(crate) fn guard(tap: &str, sides: &[Side]) -> Result<OwnTable, NetworkError> {
    const ARP: u16 = libc::ETH_P_ARP as u16;
    const IPV4: u16 = libc::ETH_P_IP as u16;
    const IPV6: u16 = libc::ETH_P_IPV6 as u16;
    let place = Place {
        kind: "filter",
        hook: DevHookNumber::Ingress.into(),
        device: Some(tap),
        priority: 0,
    };
    let comment = "what one machine may send";
    OwnTable::make(NetfilterProtoFamily::NetDev, tap, comment, |batch| {
        batch.add_chain(INGRESS, Some(place));
        for side in sides {
            let protocol = if let IpAddr::V4(own) = side.own {
                // The kernel itself refuses the loopback address of IPv6 from any wire.
                let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
                batch
                    .add_rule(INGRESS, [protocol_is(ARP), arp_sender_is(own), accept()])
                    .add_rule(
                        INGRESS,
                        [protocol_is(IPV4), destination_is_in(loopback, 8), drop()],
                    );
                IPV4
            } else {
                IPV6
            };
            let from_own = || {
                protocol_is(protocol)
                    .into_iter()
                    .chain(source_of_packet_is(side.own))
                    .collect()
            };
            let to = |net: IpNet| destination_is_in(net.network(), net.prefix_len());
            if let Some(others) = side.others {
                batch
                    .add_rule(INGRESS, [from_own(), to(side.gateway.into()), accept()])
                    .add_rule(INGRESS, [protocol_is(protocol), to(others), drop()]);
            }
            batch.add_rule(INGRESS, [from_own(), accept()]);
        }
        batch.add_rule(INGRESS, [drop()]);
    })
}
