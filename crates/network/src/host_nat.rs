// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The default network: a tap in the host's own namespace, routed, masqueraded towards everything outside.
//!
//! Each tap is a point-to-point link. The host's end has the gateway's address, the same on all of them, and one route: to
//! the guest's address. So guests reach each other by the host's routing, a guest can use no address but its own, and all of
//! it is gone with the tap.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use crate::attachment::{Interface, Route, default_route};
use crate::error::NetworkError;
use crate::firewall::{self, OwnTable, PREFIX, Side};
use crate::netlink::Socket;
use crate::netlink::link::{Link, LinkChange};
use crate::netlink::route::KernelRoute;
use crate::request::{Addressing, NetworkConfig};
use crate::state::CommonLock;
use crate::subnet::Pool;
use crate::{bridge, forwarding, identity, sysctl};

/// Ethernet's own; a route out of this host that carries less has the word.
const MTU: u32 = 1500;

/// IPv6 does not work below this.
const MIN_MTU: u32 = 1280;

/// What was made.
pub(crate) struct HostNat {
    pub(crate) interface: Interface,
    pub(crate) routes: Vec<Route>,
    /// The name of the tap on the host.
    pub(crate) tap: String,
    pub(crate) ipv4: Option<IpAddr>,
    pub(crate) ipv6: Option<IpAddr>,
    /// What the guest may send. It has to stay for as long as the tap does.
    pub(crate) guard: OwnTable,
}

/// What is to be made.
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) index: usize,
    pub(crate) addressing: &'a Addressing,
    pub(crate) publishes: bool,
    pub(crate) config: &'a NetworkConfig,
}

/// Makes it, all while the common lock is held: nobody else chooses the same address, or removes the packet filter's table
/// before the tap is there to keep it.
pub(crate) fn attach(plan: &Plan<'_>, common: &CommonLock) -> Result<HostNat, NetworkError> {
    let failed = |source| NetworkError::Netlink {
        action: "read this host's routes".to_owned(),
        source,
    };
    let mut socket = Socket::route().map_err(failed)?;
    let links = socket.links().map_err(failed)?;
    let ipv4_routes = socket.routes(true).map_err(failed)?;
    let has_ipv6 = sysctl::has_ipv6();
    let ipv6_routes = if has_ipv6 {
        socket.routes(false).map_err(failed)?
    } else {
        Vec::new()
    };

    let ours: HashSet<u32> = links
        .iter()
        .filter(|link| is_routed_tap(link))
        .map(|link| link.index)
        .collect();
    let is_ours = |route: &KernelRoute| route.interface.is_some_and(|index| ours.contains(&index));
    let name_of = |index| {
        let link = links.iter().find(|link: &&Link| link.index == index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    };
    let ipv4 = Pool::ipv4(plan.config.ipv4, &ipv4_routes, is_ours, name_of)?;
    let ipv6 = if has_ipv6 {
        Pool::ipv6(plan.config.ipv6, &ipv6_routes, is_ours, name_of)?
    } else {
        None
    };
    let wanted = wanted_addresses(plan.addressing, ipv4.as_ref(), ipv6.as_ref())?;

    let mut filter =
        Socket::netfilter().map_err(|source| firewall::refused("open a socket", source))?;
    let families = [(ipv4.is_some(), true), (ipv6.is_some(), false)];
    let families: Vec<bool> = families
        .into_iter()
        .filter_map(|(is_wanted, is_ipv4)| is_wanted.then_some(is_ipv4))
        .collect();
    forwarding::turn_on(plan.config, &mut filter, &links, &families, common)?;
    firewall::ensure(&mut filter)?;

    let mtu =
        uplink_mtu(&links, &ipv4_routes).min(u32::from(plan.addressing.mtu.unwrap_or(u16::MAX)));
    let (fd, tap) = bridge::make_named(PREFIX, plan.id, plan.index)?;
    let index = bring_up(&mut socket, &tap, mtu, has_ipv6, plan.config.isolate)?;

    let mut interface = interface(fd, plan, mtu);
    let mut guest_routes = Vec::new();
    let (mut own4, mut own6) = (None, None);
    let mut sides = Vec::new();
    for (pool, routes, wanted) in [
        (ipv4, &ipv4_routes, wanted.0),
        (ipv6, &ipv6_routes, wanted.1),
    ] {
        let Some(pool) = pool else { continue };
        let gateway = pool.gateway();
        socket
            .add_address(index, Pool::single(gateway))
            .map_err(|source| NetworkError::Netlink {
                action: format!("give {tap} the address {gateway}"),
                source,
            })?;
        let address = claim(&mut socket, &pool, plan.id, routes, wanted, index)?;
        if address.is_ipv4() {
            own4 = Some(address);
        } else {
            own6 = Some(address);
        }
        sides.push(Side {
            own: address,
            gateway,
            others: plan.config.isolate.then(|| pool.subnet()),
        });
        interface.addresses.push(Pool::single(address));
        guest_routes.push(default_route(gateway, &interface.name, plan.index, true));
    }
    let guard = firewall::guard(&tap, &sides)?;
    if plan.publishes {
        answer_loopback(&mut socket, &tap, index, own6.is_some())?;
    }
    Ok(HostNat {
        interface,
        routes: guest_routes,
        tap,
        ipv4: own4,
        ipv6: own6,
        guard,
    })
}

/// Lets answers to this host's own processes come back for its loopback addresses. What guests send there themselves is
/// dropped by their guard, which must stand by now.
fn answer_loopback(
    socket: &mut Socket,
    tap: &str,
    index: u32,
    has_ipv6: bool,
) -> Result<(), NetworkError> {
    sysctl::set(format!("ipv4/conf/{tap}/route_localnet"), "1")?;
    if has_ipv6 {
        socket
            .add_loopback_route(index)
            .map_err(|source| NetworkError::Netlink {
                action: format!("let {tap} answer this host's loopback address"),
                source,
            })?;
    }
    Ok(())
}

fn interface(tap: OwnedFd, plan: &Plan<'_>, mtu: u32) -> Interface {
    Interface {
        tap,
        name: format!("eth{}", plan.index),
        mac: plan
            .addressing
            .mac
            .unwrap_or_else(|| identity::guest_mac(plan.id, plan.index)),
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        addresses: Vec::new(),
    }
}

/// The addresses that the user asks for, of each family.
fn wanted_addresses(
    addressing: &Addressing,
    ipv4: Option<&Pool>,
    ipv6: Option<&Pool>,
) -> Result<(Option<IpAddr>, Option<IpAddr>), NetworkError> {
    let mut wanted = (None, None);
    for address in addressing.addresses.iter().map(ipnet::IpNet::addr) {
        let refuse = |reason: &str| NetworkError::BadAddress {
            address,
            reason: reason.to_owned(),
        };
        let (pool, place) = if address.is_ipv4() {
            (ipv4, &mut wanted.0)
        } else {
            (ipv6, &mut wanted.1)
        };
        let pool = pool.ok_or_else(|| refuse("this network has no addresses of its family"))?;
        pool.check_guest(address)?;
        if place.replace(address).is_some() {
            return Err(refuse("this network gives one address of each family"));
        }
    }
    Ok(wanted)
}

/// Settings of a tap that are not left to what the host has by default.
const IPV4_SETTINGS: [(&str, &str); 6] = [
    // Routers that a guest names, and such as it is told of: there is one way for it.
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
    // The host answers for the gateway's address alone, and asks in its name.
    ("proxy_arp", "0"),
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
    // Sources are its guard's to look at; this is for what a tap outlives it.
    ("rp_filter", "1"),
];
const IPV6_SETTINGS: [(&str, &str); 2] = [
    // A guest that says it is a router must not become the host's.
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
];

/// Makes the tap ready and brings it up; gives its index.
fn bring_up(
    socket: &mut Socket,
    tap: &str,
    mtu: u32,
    has_ipv6: bool,
    isolate: bool,
) -> Result<u32, NetworkError> {
    let failed = |source| NetworkError::Netlink {
        action: format!("bring up tap interface {tap}"),
        source,
    };
    let link = socket.link(tap).map_err(failed)?;
    let index = link
        .map(|link| link.index)
        .ok_or_else(|| NetworkError::NoInterface {
            kind: "tap",
            name: tap.to_owned(),
        })?;
    for (setting, value) in IPV4_SETTINGS {
        sysctl::set(format!("ipv4/conf/{tap}/{setting}"), value)?;
    }
    for (setting, value) in IPV6_SETTINGS.iter().filter(|_| has_ipv6) {
        sysctl::set(format!("ipv6/conf/{tap}/{setting}"), value)?;
    }
    let mut changes = vec![LinkChange::Mtu(mtu), LinkChange::Up];
    if !isolate {
        changes.push(LinkChange::Group(firewall::SOCIABLE));
    }
    socket.change_link(index, &changes).map_err(failed)?;
    Ok(index)
}

/// Takes an address by the route to it, which the kernel makes but once.
fn claim(
    socket: &mut Socket,
    pool: &Pool,
    id: &str,
    routes: &[KernelRoute],
    wanted: Option<IpAddr>,
    index: u32,
) -> Result<IpAddr, NetworkError> {
    let gateway = pool.gateway();
    let mut take =
        |address: IpAddr| match socket.add_link_route(Pool::single(address), index, gateway) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(source) => Err(NetworkError::Netlink {
                action: format!("make a route to {address}"),
                source,
            }),
        };
    if let Some(address) = wanted {
        return if take(address)? {
            Ok(address)
        } else {
            Err(NetworkError::BadAddress {
                address,
                reason: "another machine has it".to_owned(),
            })
        };
    }
    for address in pool.free(id, routes) {
        if take(address)? {
            return Ok(address);
        }
    }
    Err(pool.exhausted())
}

/// What the way out of this host carries in one piece.
fn uplink_mtu(links: &[Link], routes: &[KernelRoute]) -> u32 {
    routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.metric.unwrap_or(0))
        .and_then(|route| route.interface)
        .and_then(|index| links.iter().find(|link| link.index == index))
        .map_or(MTU, |link| link.mtu.clamp(MIN_MTU, MTU))
}

/// The names of the routed taps of all machines.
pub(crate) fn taps(socket: &mut Socket) -> Result<Vec<String>, NetworkError> {
    let links = socket.links().map_err(|source| NetworkError::Netlink {
        action: "list interfaces".to_owned(),
        source,
    })?;
    Ok(links
        .into_iter()
        .filter(is_routed_tap)
        .map(|link| link.name)
        .collect())
}

/// Others may have interfaces whose names start like ours.
fn is_routed_tap(link: &Link) -> bool {
    link.tun.is_some() && identity::is_interface_name(PREFIX, &link.name)
}
