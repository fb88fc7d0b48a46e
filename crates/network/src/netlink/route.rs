// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Routes and neighbours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};

use super::Socket;
use super::link::family_of;
use crate::mac::MacAddress;

/// The kernel's number of the table with the host's own addresses.
const TABLE_LOCAL: u8 = 255;

/// What the kernel says of a route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// The index of the interface; none for unreachable destinations.
    pub(crate) interface: Option<u32>,
    pub(crate) metric: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) is_on_link: bool,
    /// Made by the kernel itself for an address.
    pub(crate) is_of_kernel: bool,
}

impl Socket {
    /// The main table's unicast routes of one family, and those that refuse.
    pub(crate) fn routes(&mut self, is_ipv4: bool) -> io::Result<Vec<KernelRoute>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(unspecified(is_ipv4));
        Ok(self
            .list(RouteNetlinkMessage::GetRoute(message))?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => main_route(&message, is_ipv4),
                _ => None,
            })
            .collect())
    }

    /// A route to what is on the link of this index. Fails with EEXIST where the destination has one: this is how an address
    /// is claimed.
    pub(crate) fn add_link_route(
        &mut self,
        destination: IpNet,
        index: u32,
        source: IpAddr,
    ) -> io::Result<()> {
        let mut message = new_route(destination, index);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Link;
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
        self.change(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Makes what comes in on this link for the host's loopback address of IPv6 be the host's own, as `route_localnet` does
    /// for IPv4. It comes after the loopback interface's own route, so nothing else changes, and each link has its own.
    pub(crate) fn add_loopback_route(&mut self, index: u32) -> io::Result<()> {
        const AFTER_ALL_OTHERS: u32 = 4096;
        let loopback = IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
        let mut message = new_route(loopback, index);
        message.header.table = TABLE_LOCAL;
        message.header.kind = RouteType::Local;
        let metric = AFTER_ALL_OTHERS.saturating_add(index);
        message.attributes.push(RouteAttribute::Priority(metric));
        self.change(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Neighbours of this link that somebody entered by hand.
    pub(crate) fn permanent_neighbours(
        &mut self,
        index: u32,
    ) -> io::Result<Vec<(IpAddr, MacAddress)>> {
        let mut found = Vec::new();
        for answer in self.list(RouteNetlinkMessage::GetNeighbour(
            NeighbourMessage::default(),
        ))? {
            let RouteNetlinkMessage::NewNeighbour(message) = answer else {
                continue;
            };
            if message.header.ifindex != index || message.header.state != NeighbourState::Permanent
            {
                continue;
            }
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                        Some(IpAddr::V4(*address))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                        Some(IpAddr::V6(*address))
                    }
                    _ => None,
                });
            let mac = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(bytes) => MacAddress::from_slice(bytes),
                    _ => None,
                });
            found.extend(address.zip(mac));
        }
        Ok(found)
    }
}

fn unspecified(is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

fn new_route(destination: IpNet, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![
        RouteAttribute::Destination(destination.addr().into()),
        RouteAttribute::Oif(index),
    ];
    message
}

fn main_route(message: &RouteMessage, is_ipv4: bool) -> Option<KernelRoute> {
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(message.header.table.into());
    let is_wanted = matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    );
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || !is_wanted {
        return None;
    }
    let mut route = KernelRoute {
        destination: IpNet::new(
            unspecified(is_ipv4),
            message.header.destination_prefix_length,
        )
        .ok()?,
        gateway: None,
        interface: None,
        metric: None,
        source: None,
        is_on_link: message.header.flags.contains(RouteFlags::Onlink),
        is_of_kernel: message.header.protocol == RouteProtocol::Kernel,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNet::new(
                    address_of(address)?,
                    message.header.destination_prefix_length,
                )
                .ok()?;
            }
            RouteAttribute::Gateway(address) => route.gateway = address_of(address),
            RouteAttribute::PrefSource(address) => route.source = address_of(address),
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            // Several ways: the first stands for all.
            RouteAttribute::MultiPath(hops) => {
                if let Some(hop) = hops.first() {
                    route.interface = Some(hop.interface_index);
                    route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(address) => address_of(address),
                        _ => None,
                    });
                }
            }
            _ => {}
        }
    }
    Some(route)
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
