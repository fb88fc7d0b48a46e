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
use crate::firewall::{self, PREFIX};
use crate::netlink::Socket;
use crate::netlink::link::{Link, LinkChange};
use crate::netlink::route::KernelRoute;
use crate::request::{Addressing, NetworkConfig};
use crate::state::CommonLock;
use crate::subnet::Pool;
use crate::{bridge, identity, sysctl};

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
pub(crate) fn attach(plan: &Plan<'_>, _common: &CommonLock) -> Result<HostNat, NetworkError> {
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
        .filter(|link| link.name.starts_with(PREFIX))
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

    for (pool, is_ipv4) in [(ipv4, true), (ipv6, false)] {
        if pool.is_some() {
            sysctl::enable_forwarding(is_ipv4)?;
        }
    }
    let mut filter =
        Socket::netfilter().map_err(|source| firewall::refused("open a socket", source))?;
    firewall::ensure(&mut filter)?;

    let mtu =
        uplink_mtu(&links, &ipv4_routes).min(u32::from(plan.addressing.mtu.unwrap_or(u16::MAX)));
    let (fd, tap) = bridge::make_named(PREFIX, plan.id, plan.index)?;
    let index = prepare_tap(&mut socket, &tap, mtu, has_ipv6, plan.publishes)?;

    let mut made = HostNat {
        interface: interface(fd, plan, mtu),
        routes: Vec::new(),
        tap,
        ipv4: None,
        ipv6: None,
    };
    for (pool, routes, wanted) in [
        (ipv4, &ipv4_routes, wanted.0),
        (ipv6, &ipv6_routes, wanted.1),
    ] {
        let Some(pool) = pool else { continue };
        let gateway = pool.gateway();
        socket
            .add_address(index, Pool::single(gateway))
            .map_err(|source| NetworkError::Netlink {
                action: format!("give {} the address {gateway}", made.tap),
                source,
            })?;
        let address = claim(&mut socket, &pool, plan.id, routes, wanted, index)?;
        if address.is_ipv4() {
            made.ipv4 = Some(address);
        } else {
            made.ipv6 = Some(address);
        }
        made.interface.addresses.push(Pool::single(address));
        made.routes.push(default_route(
            gateway,
            &made.interface.name,
            plan.index,
            true,
        ));
    }
    if plan.publishes && made.ipv6.is_some() {
        socket
            .add_loopback_route(index)
            .map_err(|source| NetworkError::Netlink {
                action: format!("let {} answer this host's loopback address", made.tap),
                source,
            })?;
    }
    Ok(made)
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

/// Makes the tap ready and brings it up; gives its index.
fn prepare_tap(
    socket: &mut Socket,
    tap: &str,
    mtu: u32,
    has_ipv6: bool,
    publishes: bool,
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
    if has_ipv6 {
        // A guest that says it is a router must not become the host's.
        sysctl::set(format!("ipv6/conf/{tap}/accept_ra"), "0")?;
        sysctl::set(format!("ipv6/conf/{tap}/accept_redirects"), "0")?;
    }
    // Questions for Ethernet addresses pass no packet filter: with this, who asks for others than the guest is not noted down.
    sysctl::set(format!("ipv4/conf/{tap}/rp_filter"), "1")?;
    if publishes {
        // Answers to this host's own processes come back for its loopback address. What guests send there is dropped.
        sysctl::set(format!("ipv4/conf/{tap}/route_localnet"), "1")?;
    }
    socket
        .change_link(index, &[LinkChange::Mtu(mtu), LinkChange::Up])
        .map_err(failed)?;
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

/// Whether a routed tap of any machine is left.
pub(crate) fn is_in_use(socket: &mut Socket) -> Result<HashSet<String>, NetworkError> {
    let links = socket.links().map_err(|source| NetworkError::Netlink {
        action: "list interfaces".to_owned(),
        source,
    })?;
    Ok(links
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name.starts_with(PREFIX))
        .collect())
}
