// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports of the host that lead into a machine.
//!
//! The kernel redirects connections; no byte of them passes through a process. Beside that, each port is held by a socket of
//! this process, so that whoever wants it next is told that it is taken, and so are we. The rules are in a table of their
//! own, which the kernel removes together with the socket that made it, however this process ends.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::InetHookNumber;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::error::NetworkError;
use crate::firewall::{
    OwnTable, Place, Rule, accept, destination_is, destination_is_local, family_is, jump, port_is,
    redirect_to, refused,
};
use crate::netlink::Socket;
use crate::port::{PortMapping, Protocol};
use crate::request::NetworkConfig;
use crate::{state, sysctl};

/// Ports of one machine: each takes a descriptor.
const MAX_PORTS: usize = 512;

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const PORTS: &str = "ports";

/// Where destinations are rewritten.
const PRIORITY_DSTNAT: i32 = -100;

/// Ports that this process holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// With the host's ports as they are.
    pub(crate) mappings: Vec<PortMapping>,
    _sockets: Vec<OwnedFd>,
}

/// Refuses what no host can publish.
pub(crate) fn check(mappings: &[PortMapping]) -> Result<(), NetworkError> {
    for mapping in mappings {
        mapping.check()?;
    }
    let count = mappings
        .iter()
        .map(|mapping| usize::from(mapping.count))
        .sum();
    if count > MAX_PORTS {
        return Err(NetworkError::TooManyPorts {
            count,
            limit: MAX_PORTS,
        });
    }
    for (index, mapping) in mappings.iter().enumerate() {
        let before = mappings.iter().take(index);
        let mut colliding = before.filter_map(|other| Some((other, other.collides(*mapping)?)));
        if let Some((other, port)) = colliding.next() {
            return Err(NetworkError::PortTwice {
                port,
                protocol: mapping.protocol.name(),
                mappings: format!("{other} and {mapping}"),
            });
        }
    }
    Ok(())
}

/// Takes the ports on this host.
pub(crate) fn hold(mappings: &[PortMapping], config: &NetworkConfig) -> Result<Held, NetworkError> {
    let mut held = Held::default();
    let has_ipv6 = sysctl::has_ipv6();
    for mapping in mappings {
        for single in mapping.single() {
            let (socket, port) =
                bind(&single, has_ipv6).map_err(|source| refusal(&single, source, config))?;
            held._sockets.push(socket);
            if mapping.host_port.is_none() {
                held.mappings.push(PortMapping {
                    host_port: Some(port),
                    ..single
                });
            }
        }
        if mapping.host_port.is_some() {
            held.mappings.push(*mapping);
        }
    }
    Ok(held)
}

/// Binds a port, so that nobody else can; gives the port that it is.
fn bind(mapping: &PortMapping, has_ipv6: bool) -> io::Result<(OwnedFd, u16)> {
    // An IPv6 socket without an address holds the port for both families.
    let address = mapping.host_address.unwrap_or(if has_ipv6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    });
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let kind = match mapping.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, mapping.host_address.is_some())?;
    }
    if mapping.protocol == Protocol::Tcp {
        // What an earlier server's connections left in TIME_WAIT is no obstacle. For UDP the option would mean that others
        // may have the port as well.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    drop_everything(&socket)?;
    rustix::net::bind(
        &socket,
        &SocketAddr::new(address, mapping.host_port.unwrap_or(0)),
    )?;
    if mapping.protocol == Protocol::Tcp {
        // Another socket that may reuse addresses can bind the port until somebody listens.
        rustix::net::listen(&socket, 0)?;
    }
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

/// Lets nothing into the socket: were the rules flushed by somebody, it must not answer in the machine's place.
fn drop_everything(socket: &OwnedFd) -> io::Result<()> {
    const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [libc::sock_filter {
        code: RETURN_CONSTANT,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the option takes one `sock_fprog`, whose one instruction lives until after the call; the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn refusal(mapping: &PortMapping, source: io::Error, config: &NetworkConfig) -> NetworkError {
    let address = match mapping.host_address {
        None => "*".to_owned(),
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => format!("[{address}]"),
    };
    let port = mapping.host_port.unwrap_or(0);
    let protocol = mapping.protocol.name();
    if source.raw_os_error() == Some(libc::EADDRINUSE) {
        let covers = |other: &PortMapping| {
            other.protocol == mapping.protocol
                && other
                    .single()
                    .any(|single| single.host_port == mapping.host_port)
        };
        match state::owner_of_port(config, covers) {
            Some(id) => NetworkError::PortOfMachine {
                address,
                port,
                protocol,
                id,
            },
            None => NetworkError::PortInUse {
                address,
                port,
                protocol,
                by: process_with_port(mapping.protocol, port),
            },
        }
    } else if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) {
        NetworkError::NoSuchAddress {
            address,
            port,
            protocol,
        }
    } else {
        NetworkError::PortBind {
            address,
            port,
            protocol,
            source,
        }
    }
}

/// The name and number of a process that listens on the port, as far as /proc tells.
fn process_with_port(protocol: Protocol, port: u16) -> Option<String> {
    let tables = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    let inode = tables.iter().find_map(|table| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
        inode_with_port(&text, protocol, port)
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has_it = descriptors.flatten().any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if has_it {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let mut shown = String::new();
            // Writing to a string cannot fail.
            let _ = write!(shown, "{} (process {pid})", name.trim_end());
            return Some(shown);
        }
    }
    None
}

/// Looks a port up in the text of /proc/net/tcp and its like; TCP sockets must listen.
fn inode_with_port(text: &str, protocol: Protocol, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    text.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let (_, local_port) = local.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local_port, 16) == Ok(port)
            && (protocol == Protocol::Udp || state == LISTEN);
        is_it.then(|| inode.parse().ok()).flatten()
    })
}

/// The rules, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Redirection {
    /// None while it is dropped.
    table: Option<OwnTable>,
    mappings: Vec<PortMapping>,
}

/// UDP flows that go on would be redirected as before, or not at all.
fn forget_flows(mappings: &[PortMapping]) -> io::Result<()> {
    let ranges: Vec<_> = mappings
        .iter()
        .filter(|mapping| mapping.protocol == Protocol::Udp)
        .filter_map(|mapping| {
            mapping
                .host_port
                .map(|first| first..=first.saturating_add(mapping.count - 1))
        })
        .collect();
    if ranges.is_empty() {
        return Ok(());
    }
    Socket::netfilter()?.forget_udp_flows(|port| ranges.iter().any(|range| range.contains(&port)))
}

impl Drop for Redirection {
    fn drop(&mut self) {
        self.table = None;
        if let Err(error) = forget_flows(&self.mappings) {
            tracing::warn!("UDP flows to published ports go on to where they went: {error}");
        }
    }
}

/// Lets the kernel redirect connections to the machine's addresses. `table` is a name that this machine alone has.
pub(crate) fn redirect(
    table: &str,
    mappings: &[PortMapping],
    ipv4: Option<IpAddr>,
    ipv6: Option<IpAddr>,
) -> Result<Redirection, NetworkError> {
    let place = |hook| Some(Place::inet("nat", hook, PRIORITY_DSTNAT));
    let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    let made = OwnTable::make(
        NetfilterProtoFamily::Inet,
        table,
        "ports of one machine",
        |batch| {
            batch
                .add_chain(PORTS, None)
                .add_chain(PREROUTING, place(InetHookNumber::PreRouting))
                .add_chain(OUTPUT, place(InetHookNumber::LocalOut))
                // From a neighbour on the wire: redirected here it would no longer be refused as a martian.
                .add_rule(PREROUTING, [destination_is(loopback, 8), accept()])
                .add_rule(PREROUTING, [jump(PORTS)])
                .add_rule(OUTPUT, [jump(PORTS)]);
            for mapping in mappings {
                for rule in rules_of(mapping, ipv4, ipv6) {
                    batch.add_rule(PORTS, [rule]);
                }
            }
        },
    )?;
    let redirection = Redirection {
        table: Some(made),
        mappings: mappings.to_vec(),
    };
    forget_flows(mappings)
        .map_err(|source| refused("forget UDP flows to published ports", source))?;
    Ok(redirection)
}

fn rules_of(mapping: &PortMapping, ipv4: Option<IpAddr>, ipv6: Option<IpAddr>) -> Vec<Rule> {
    // A range that keeps its numbers is one rule.
    let parts: Vec<PortMapping> = if mapping.host_port == Some(mapping.port) {
        vec![*mapping]
    } else {
        mapping.single().collect()
    };
    let is_unspecified = mapping
        .host_address
        .is_none_or(|address| address.is_unspecified());
    let mut rules = Vec::new();
    for guest in [ipv4, ipv6].into_iter().flatten() {
        let is_wanted = mapping
            .host_address
            .is_none_or(|address| address.is_ipv4() == guest.is_ipv4());
        if !is_wanted {
            continue;
        }
        for part in &parts {
            let first = part.host_port.unwrap_or(part.port);
            let mut rule = match mapping.host_address {
                Some(address) if !is_unspecified => {
                    let length = if address.is_ipv4() { 32 } else { 128 };
                    destination_is(address, length)
                }
                _ => {
                    let mut rule = family_is(guest.is_ipv4());
                    rule.extend(destination_is_local());
                    rule
                }
            };
            rule.extend(port_is(
                part.protocol,
                first,
                first.saturating_add(part.count - 1),
            ));
            let port = (first != part.port).then_some(part.port);
            rule.extend(redirect_to(guest, port));
            rules.push(rule);
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 41 1 0000000000000000 20 0 0 10 -1\n\
        \x20  1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 42 1 0000000000000000 100 0 0 10 0\n";

    #[test]
    fn listener_is_found_and_no_connection() {
        assert_eq!(inode_with_port(TCP, Protocol::Tcp, 8080), Some(42));
        assert_eq!(inode_with_port(TCP, Protocol::Tcp, 8081), None);
        assert_eq!(inode_with_port("garbage\n\n1\n", Protocol::Tcp, 8080), None);
    }

    #[test]
    fn range_that_keeps_its_numbers_is_one_rule_a_family() {
        let guest = "10.0.0.2".parse().ok();
        let same: PortMapping = "8000-8099:8000-8099".parse().unwrap();
        let shifted: PortMapping = "8000-8099:9000-9099".parse().unwrap();

        assert_eq!(rules_of(&same, guest, "fd00::2".parse().ok()).len(), 2);
        assert_eq!(rules_of(&shifted, guest, None).len(), 100);
    }

    #[test]
    fn port_of_one_family_has_rules_of_that_family() {
        let mapping: PortMapping = "[::1]:80:80".parse().unwrap();

        assert!(rules_of(&mapping, "10.0.0.2".parse().ok(), None).is_empty());
    }

    #[test]
    fn more_ports_than_a_machine_may_have_are_refused() {
        let mapping: PortMapping = "1-513:1-513".parse().unwrap();

        let error = check(&[mapping]).unwrap_err();

        assert!(
            matches!(error, NetworkError::TooManyPorts { count: 513, .. }),
            "{error}"
        );
    }
}
