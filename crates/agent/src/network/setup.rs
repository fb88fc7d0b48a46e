// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does what a plan says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use rustix::io::Errno;

use super::netlink::{LinkInfo, Refusal, Request, Socket};
use super::plan::{Hex, Link, Plan, PlannedNeighbour, PlannedRoute};
use super::{Prefix, bring_loopback_up};

/// `IFA_F_NODAD`: an address that the host has given is nobody else's, and is used at once.
const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// `IFA_FLAGS`.
const ADDRESS_FLAGS: u16 = 8;
/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;

/// What could not be done.
pub(super) struct Problem {
    what: String,
    refusal: Refusal,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.refusal)
    }
}

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Problem>;
}

impl<T, E: Into<Refusal>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Problem> {
        self.map_err(|refusal| Problem {
            what: what(),
            refusal: refusal.into(),
        })
    }
}

/// Sets the network namespace of this thread up.
pub(super) fn apply(plan: &Plan) -> Result<(), Problem> {
    bring_loopback_up()
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        .context(|| "bring the loopback interface up".to_owned())?;
    let socket = Socket::open().context(|| "open a netlink socket".to_owned())?;
    let indices = find(&socket, plan)?;
    let index = |name: &str| indices.get(name).copied().unwrap_or_default();
    for link in &plan.links {
        configure(&socket, link, index(&link.name))?;
    }
    for route in &plan.routes {
        add_route(&socket, plan, route, index(&route.interface))?;
    }
    for neighbour in &plan.neighbours {
        add_neighbour(&socket, neighbour, index(&neighbour.interface))?;
    }
    Ok(())
}

/// Finds all links by their addresses and gives them their names. Gives their indices.
fn find<'p>(socket: &Socket, plan: &'p Plan) -> Result<BTreeMap<&'p str, u32>, Problem> {
    let present = socket
        .links()
        .context(|| "list the network devices".to_owned())?;
    let mut found: Vec<(&Link, &LinkInfo)> = Vec::new();
    for link in &plan.links {
        let info = present
            .iter()
            .find(|info| info.mac == link.mac)
            .ok_or(Errno::NODEV)
            .context(|| {
                format!(
                    "find the network device {} for interface {}",
                    Hex(link.mac),
                    link.name
                )
            })?;
        found.push((link, info));
    }
    let renamed: Vec<_> = found
        .iter()
        .filter(|(link, info)| link.name != info.name)
        .collect();
    // One may have the name that another is to have: then all are called something else first.
    let taken = |name: &str| present.iter().any(|info| info.name == name);
    if renamed.iter().any(|(link, _)| taken(&link.name)) {
        for (link, info) in &renamed {
            rename(socket, link, info.index, &format!("coracle{}", info.index))?;
        }
    }
    for (link, info) in &renamed {
        rename(socket, link, info.index, &link.name)?;
    }
    Ok(found
        .iter()
        .map(|(link, info)| (link.name.as_str(), info.index))
        .collect())
}

fn rename(socket: &Socket, link: &Link, index: u32, name: &str) -> Result<(), Problem> {
    // Only a link that is down can be renamed.
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    socket
        .request(change_link(index, false))
        .and_then(|()| socket.request(change_link(index, false).with(libc::IFLA_IFNAME, &name)))
        .context(|| format!("name the network device {} {}", Hex(link.mac), link.name))
}

fn configure(socket: &Socket, link: &Link, index: u32) -> Result<(), Problem> {
    let name = &link.name;
    if let Some(mtu) = link.mtu {
        socket
            .request(change_link(index, false).with_number(libc::IFLA_MTU, mtu))
            .context(|| format!("set the MTU of interface {name} to {mtu}"))?;
    }
    for address in &link.addresses {
        match socket.request(new_address(index, *address)) {
            // It was there before, as in a call that failed later.
            Err(refusal) if refusal.errno == Errno::EXIST => {}
            result => result.context(|| format!("give interface {name} the address {address}"))?,
        }
    }
    socket
        .request(change_link(index, true))
        .context(|| format!("bring interface {name} up"))
}

fn add_route(
    socket: &Socket,
    plan: &Plan,
    route: &PlannedRoute,
    index: u32,
) -> Result<(), Problem> {
    match socket.request(new_route(index, route)) {
        // The kernel adds the networks of addresses by itself.
        Err(refusal) if refusal.errno == Errno::EXIST && is_connected(plan, route) => Ok(()),
        result => result.context(|| {
            let via = route
                .gateway
                .map_or_else(String::new, |gateway| format!(" via {gateway}"));
            format!(
                "add the route to {}{via} of interface {}",
                route.destination, route.interface
            )
        }),
    }
}

fn is_connected(plan: &Plan, route: &PlannedRoute) -> bool {
    route.gateway.is_none()
        && plan
            .links
            .iter()
            .filter(|link| link.name == route.interface)
            .flat_map(|link| &link.addresses)
            .any(|address| address.network() == route.destination)
}

fn add_neighbour(socket: &Socket, neighbour: &PlannedNeighbour, index: u32) -> Result<(), Problem> {
    // `struct ndmsg`: family, padding, index, state, flags, type.
    let mut body = vec![family(neighbour.address), 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(libc::NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let request = Request::new(libc::RTM_NEWNEIGH, flags, &body)
        .with(libc::NDA_DST, &octets(neighbour.address))
        .with(libc::NDA_LLADDR, &neighbour.mac);
    socket.request(request).context(|| {
        format!(
            "add the neighbour {} of interface {}",
            neighbour.address, neighbour.interface
        )
    })
}

/// A change of a link, which takes it up or leaves it; one to be renamed is taken down.
fn change_link(index: u32, up: bool) -> Request {
    let up_flag = libc::IFF_UP.cast_unsigned();
    // `struct ifinfomsg`: family, padding, type, index, flags, mask of changed flags.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(if up { up_flag } else { 0 }.to_ne_bytes());
    body.extend(up_flag.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &body)
}

fn new_address(index: u32, prefix: Prefix) -> Request {
    let bytes = octets(prefix.address);
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
    let mut body = vec![family(prefix.address), prefix.length, 0, 0];
    body.extend(index.to_ne_bytes());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let request = Request::new(libc::RTM_NEWADDR, flags, &body)
        .with(libc::IFA_LOCAL, &bytes)
        .with(libc::IFA_ADDRESS, &bytes);
    match (prefix.address, prefix.length) {
        (IpAddr::V6(_), _) => request.with_number(ADDRESS_FLAGS, NO_DUPLICATE_DETECTION),
        // A network of two has no address for all.
        (IpAddr::V4(_), 31..) => request,
        (IpAddr::V4(address), length) => {
            let host_part = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let broadcast = u32::from(address) | host_part;
            request.with(libc::IFA_BROADCAST, &broadcast.to_be_bytes())
        }
    }
}

fn new_route(index: u32, route: &PlannedRoute) -> Request {
    const UNICAST: u8 = 1;
    let PlannedRoute {
        destination,
        gateway,
        on_link,
        metric,
        source,
        ..
    } = route;
    let scope = match (gateway, destination.address) {
        (None, IpAddr::V4(_)) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let flags = if *on_link && gateway.is_some() {
        ON_LINK
    } else {
        0
    };
    // `struct rtmsg`: family, prefix lengths, type of service, table, protocol, scope, type, flags.
    let mut body = vec![
        family(destination.address),
        destination.length,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        scope,
        UNICAST,
    ];
    body.extend(flags.to_ne_bytes());
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request =
        Request::new(libc::RTM_NEWROUTE, create, &body).with_number(libc::RTA_OIF, index);
    if destination.length > 0 {
        request = request.with(libc::RTA_DST, &octets(destination.address));
    }
    if let Some(gateway) = gateway {
        request = request.with(libc::RTA_GATEWAY, &octets(*gateway));
    }
    if let Some(source) = source {
        request = request.with(libc::RTA_PREFSRC, &octets(*source));
    }
    if *metric != 0 {
        request = request.with_number(libc::RTA_PRIORITY, *metric);
    }
    request
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
