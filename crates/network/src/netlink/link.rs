// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links and their addresses.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Socket;
use crate::mac::MacAddress;

/// What the kernel says of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `veth`, `macvlan`, ...; empty for hardware.
    pub(crate) kind: String,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: u32,
    pub(crate) is_loopback: bool,
    /// Nobody on it is asked for Ethernet addresses.
    pub(crate) is_without_arp: bool,
    /// For what /dev/net/tun makes.
    pub(crate) tun: Option<Tun>,
}

/// What the kernel says of a tun or tap interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tun {
    pub(crate) is_tap: bool,
    pub(crate) is_multi_queue: bool,
}

impl Tun {
    fn new(attributes: &[InfoTun]) -> Self {
        // From `linux/if_link.h`; each is a byte.
        const IFLA_TUN_TYPE: u16 = 3;
        const IFLA_TUN_MULTI_QUEUE: u16 = 7;
        const TAP: u8 = libc::IFF_TAP as u8;
        let value = |kind| {
            let attribute = attributes
                .iter()
                .find(|attribute| attribute.kind() == kind)?;
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            bytes.first().copied()
        };
        Self {
            is_tap: value(IFLA_TUN_TYPE) == Some(TAP),
            is_multi_queue: value(IFLA_TUN_MULTI_QUEUE).is_some_and(|value| value != 0),
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            is_loopback: message.header.flags.contains(LinkFlags::Loopback),
            is_without_arp: message.header.flags.contains(LinkFlags::Noarp),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(address) => link.mac = MacAddress::from_slice(&address),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                            LinkInfo::Data(InfoData::Tun(attributes)) => {
                                link.tun = Some(Tun::new(&attributes))
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// What is to change about a link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkChange {
    Up,
    Mtu(u32),
    Mac(MacAddress),
    /// It belongs to this group.
    Group(u32),
    /// It becomes a port of the bridge of this index.
    Controller(u32),
}

impl Socket {
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        Ok(self
            .list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?
            .into_iter()
            .filter_map(link_of)
            .collect())
    }

    /// The link of this name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => Ok(link_of(answer)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn change_link(&mut self, index: u32, changes: &[LinkChange]) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        for change in changes {
            match change {
                LinkChange::Up => {
                    message.header.flags |= LinkFlags::Up;
                    message.header.change_mask |= LinkFlags::Up;
                }
                LinkChange::Mtu(mtu) => message.attributes.push(LinkAttribute::Mtu(*mtu)),
                LinkChange::Mac(mac) => message
                    .attributes
                    .push(LinkAttribute::Address(mac.bytes().to_vec())),
                LinkChange::Group(group) => message.attributes.push(LinkAttribute::Group(*group)),
                LinkChange::Controller(bridge) => {
                    message.attributes.push(LinkAttribute::Controller(*bridge))
                }
            }
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a link an address. One of IPv6 is usable at once: nobody else can have it.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = family_of(address.addr());
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![
            AddressAttribute::Local(address.addr()),
            AddressAttribute::Address(address.addr()),
        ];
        if address.addr().is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(
                AddressFlags::Nodad | AddressFlags::Noprefixroute,
            ));
        }
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// The addresses of a link that are not link-local.
    pub(crate) fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        let mut found = Vec::new();
        for answer in self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                continue;
            };
            if message.header.index != index || message.header.scope == AddressScope::Link {
                continue;
            }
            // A point-to-point link's own address is the local one; IPv6 has only the other.
            let own = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            let other = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
            found.extend(
                own.or(other)
                    .and_then(|address| IpNet::new(address, message.header.prefix_len).ok()),
            );
        }
        Ok(found)
    }
}

fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(message.into()),
        _ => None,
    }
}

pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
