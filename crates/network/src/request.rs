// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked for, and how this host is set up.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::dns::DnsOverrides;
use crate::mac::MacAddress;
use crate::network::Network;
use crate::port::PortMapping;

/// What [`crate::attach`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The machine's name: letters, digits, `_`, `.` and `-`, at most 128 of them, a letter or digit first.
    pub id: &'a str,
    /// Its networks, in the order of its interfaces (`eth0`, `eth1`, ...).
    pub networks: &'a [Network],
    /// Ports of the host that lead into it. They need [`Network::HostNat`], or a CNI list with the capability `portMappings`.
    pub ports: &'a [PortMapping],
    /// Addresses that the first network is to give it, rather than such as the network chooses.
    pub addressing: &'a Addressing,
    /// What the user says of names rather than the host's resolv.conf.
    pub dns: &'a DnsOverrides,
    /// How this host is set up.
    pub config: &'a NetworkConfig,
    /// Once this is readable, nobody waits for a CNI plugin any more: [`crate::NetworkError::Cancelled`].
    pub cancel: Option<BorrowedFd<'a>>,
}

/// Addresses that a user chooses; all are for the first network of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressing {
    /// IP addresses with their prefix. For [`Network::HostNat`] at most one of each family, of the subnet; the prefix is not used there.
    pub addresses: Vec<IpNet>,
    /// Where default routes lead, at most one of each family. Only [`Network::Bridge`] and [`Network::Tap`] do not know by themselves.
    pub gateways: Vec<IpAddr>,
    /// The Ethernet address of the guest's interface.
    pub mac: Option<MacAddress>,
    /// The guest's MTU in bytes.
    pub mtu: Option<u16>,
}

/// Where addresses of one family come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subnet<N> {
    /// IPv4: the first of a list of private subnets that nothing on this host has a route to.
    /// IPv6: a unique local subnet (RFC 4193) made from `/etc/machine-id`; none on hosts without IPv6.
    #[default]
    Auto,
    /// This one. The first address is the gateway's; the network's and the broadcast address stay unused.
    Given(N),
    /// No addresses of this family.
    Off,
}

/// How this host is set up. [`NetworkConfig::default`] is right for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The directory that remembers what has to be removed, mode 0700. It must survive a reboot, since what CNI plugins
    /// remember of addresses does. `/var/lib/coracle/network`.
    pub state: PathBuf,
    /// IPv4 addresses of [`Network::HostNat`].
    pub ipv4: Subnet<Ipv4Net>,
    /// IPv6 addresses of [`Network::HostNat`].
    pub ipv6: Subnet<Ipv6Net>,
    /// Whether [`Network::HostNat`] keeps this machine from others: they reach each other through published ports alone. Two
    /// that are not kept apart reach each other by their own addresses. True.
    pub isolate: bool,
    /// Directories with CNI configurations; the first that has a name wins. `/etc/cni/net.d`.
    pub cni_configurations: Vec<PathBuf>,
    /// Directories with CNI plugins. `/usr/lib/cni`, `/opt/cni/bin`.
    pub cni_plugins: Vec<PathBuf>,
    /// How long one CNI plugin may take for one command. 60 seconds.
    pub cni_deadline: Duration,
    /// The host's resolver configuration. `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The resolver configuration that stands behind a local stub. `/run/systemd/resolve/resolv.conf`.
    pub resolv_conf_upstream: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            state: "/var/lib/coracle/network".into(),
            ipv4: Subnet::Auto,
            ipv6: Subnet::Auto,
            isolate: true,
            cni_configurations: vec!["/etc/cni/net.d".into()],
            cni_plugins: vec!["/usr/lib/cni".into(), "/opt/cni/bin".into()],
            cni_deadline: Duration::from_secs(60),
            resolv_conf: "/etc/resolv.conf".into(),
            resolv_conf_upstream: "/run/systemd/resolve/resolv.conf".into(),
        }
    }
}
