// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the interfaces that plugins made in a namespace to the taps of a machine.
//!
//! A plugin makes one end of a veth pair, a macvlan or an ipvlan, and gives it addresses. The machine is to stand in its place:
//! a tap beside it, and what comes in on one goes out of the other, before the namespace's own stack sees it. A tap that a
//! plugin made is the machine's as it is.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;

use super::CniAttachment;
use crate::attachment::{Interface, Neighbour, Route, metric};
use crate::error::NetworkError;
use crate::mac::MacAddress;
use crate::namespace::Namespace;
use crate::netlink::Socket;
use crate::netlink::link::{Link, LinkChange};
use crate::netlink::route::KernelRoute;
use crate::{identity, sysctl, tap};

/// How the names of our taps beside plugins' interfaces start.
const TAP_PREFIX: &str = "vm";

/// Kinds whose frames can be passed on as they are.
const JOINED_KINDS: [&str; 4] = ["veth", "macvlan", "ipvlan", "vlan"];

/// One network's interfaces, as the machine gets them.
#[derive(Default)]
pub(crate) struct Joined {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
}

/// Gives every interface that is new in the namespace to the machine. `known` holds the indices of those that are not.
pub(crate) fn join(
    namespace: &Namespace,
    network: &CniAttachment,
    index: usize,
    known: &mut Vec<u32>,
) -> Result<Joined, NetworkError> {
    namespace.within(|| {
        let failed = |source| NetworkError::Netlink {
            action: format!(
                "read what the plugins of network {:?} made",
                network.network()
            ),
            source,
        };
        let mut socket = Socket::route().map_err(failed)?;
        let mut links = socket.links().map_err(failed)?;
        links.retain(|link| !link.is_loopback && !known.contains(&link.index));
        if links.is_empty() {
            return Err(NetworkError::NoInterfaceMade {
                network: network.network().to_owned(),
            });
        }
        // The one that was asked for, then whatever else there is.
        links.sort_by_key(|link| (link.name != network.interface, link.index));
        let mut routes = socket.routes(true).map_err(failed)?;
        routes.extend(socket.routes(false).map_err(failed)?);
        let mut joined = Joined::default();
        for link in links {
            let tap = take(&mut socket, network, &link, known)?;
            let addresses = socket.addresses(link.index).map_err(failed)?;
            let addresses: Vec<_> = addresses
                .into_iter()
                .map(|own| as_routed(own, link.index, &routes))
                .collect();
            let neighbours = socket.permanent_neighbours(link.index).map_err(failed)?;
            describe(network, &link, index, &routes, &neighbours, &mut joined);
            joined.interfaces.push(Interface {
                tap,
                mac: link
                    .mac
                    .unwrap_or_else(|| identity::guest_mac(network.network(), index)),
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
                addresses: if addresses.is_empty() {
                    said_addresses(network, &link)
                } else {
                    addresses
                },
                name: link.name,
            });
        }
        Ok(joined)
    })
}

/// The machine's end of a plugin's interface.
fn take(
    socket: &mut Socket,
    network: &CniAttachment,
    link: &Link,
    known: &mut Vec<u32>,
) -> Result<OwnedFd, NetworkError> {
    known.push(link.index);
    if link.tun.is_some() {
        return tap::open(link);
    }
    if !JOINED_KINDS.contains(&link.kind.as_str()) {
        return Err(NetworkError::UnknownInterfaceKind {
            name: link.name.clone(),
            network: network.network().to_owned(),
            kind: link.kind.clone(),
        });
    }
    let name = format!("{TAP_PREFIX}{}", link.index);
    let failed = |source| NetworkError::Netlink {
        action: format!(
            "join {} of network {:?} to a tap",
            link.name,
            network.network()
        ),
        source,
    };
    let fd = tap::create(&name)?;
    let tap = socket
        .link(&name)
        .map_err(failed)?
        .ok_or_else(|| NetworkError::NoInterface {
            kind: "tap",
            name: name.clone(),
        })?;
    known.push(tap.index);
    // The namespace itself has nothing to say to the guest.
    if sysctl::has_ipv6() {
        sysctl::set(format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    // All that comes in is passed on before anything does.
    socket
        .redirect_ingress(link.index, tap.index)
        .and_then(|()| socket.redirect_ingress(tap.index, link.index))
        .and_then(|()| socket.change_link(tap.index, &[LinkChange::Mtu(link.mtu), LinkChange::Up]))
        .and_then(|()| socket.change_link(link.index, &[LinkChange::Up]))
        .map_err(failed)?;
    Ok(fd)
}

/// What the kernel knows of the routes and neighbours of an interface.
fn describe(
    network: &CniAttachment,
    link: &Link,
    index: usize,
    routes: &[KernelRoute],
    neighbours: &[(IpAddr, MacAddress)],
    joined: &mut Joined,
) {
    // What follows from the addresses, the guest's kernel makes by itself.
    let mut own: Vec<&KernelRoute> = routes
        .iter()
        .filter(|route| route.interface == Some(link.index) && !route.is_of_kernel)
        .collect();
    // Gateways are on links.
    own.sort_by_key(|route| route.gateway.is_some());
    for route in own {
        let is_default = route.destination.prefix_len() == 0;
        let place = metric(index).filter(|_| is_default && link.name == network.interface);
        joined.routes.push(Route {
            destination: route.destination,
            gateway: route.gateway,
            interface: link.name.clone(),
            on_link: route.is_on_link,
            metric: place.map_or(route.metric, |place| {
                Some(route.metric.unwrap_or(0).saturating_add(place))
            }),
            source: route.source,
        });
        // An ipvlan of layer 3 answers no question about Ethernet addresses, and takes frames for any.
        if link.is_without_arp
            && let (Some(address), Some(mac)) = (route.gateway, link.mac)
        {
            joined.neighbours.push(Neighbour {
                address,
                mac,
                interface: link.name.clone(),
            });
        }
    }
    joined
        .neighbours
        .extend(neighbours.iter().map(|(address, mac)| Neighbour {
            address: *address,
            mac: *mac,
            interface: link.name.clone(),
        }));
}

/// A plugin may have removed the route to an address's neighbours, so that all goes through a gateway: then the guest's kernel
/// must not make it either.
fn as_routed(address: IpNet, index: u32, routes: &[KernelRoute]) -> IpNet {
    let has_neighbours = routes.iter().any(|route| {
        route.interface == Some(index)
            && route.gateway.is_none()
            && route.destination == address.trunc()
    });
    if has_neighbours {
        address
    } else {
        address.addr().into()
    }
}

/// The addresses that the plugins said they gave: some leave giving them to the guest.
fn said_addresses(network: &CniAttachment, link: &Link) -> Vec<IpNet> {
    let result = network.result();
    let place = result
        .interfaces
        .iter()
        .position(|interface| interface.name == link.name && !interface.sandbox.is_empty());
    result
        .ips
        .iter()
        .filter(|address| address.interface.is_some() && address.interface == place)
        .map(|address| address.address)
        .collect()
}
