// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of a container's network.

use std::net::IpAddr;

use clap::Args;
use coracle_network::ipnet::IpNet;
use coracle_network::{MacAddress, Network, PortMapping};

use crate::config::Config;

/// A container's network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArguments {
    /// `host-nat`: through the host, as the host; `none`; NAME: what the CNI configuration of that name makes;
    /// `bridge:BRIDGE`: a port of a Linux or Open vSwitch bridge; `tap:INTERFACE`: a tap that is there. May be given
    /// several times [default: host-nat, unless the configuration says otherwise]
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<Network>,
    /// Have a port of the host lead into the container
    #[arg(short, long, value_name = "[[HOST_IP:]HOST_PORT:]PORT[/tcp|udp]")]
    pub publish: Vec<PortMapping>,
    /// Address in the first network, with the length of its prefix; one of IPv4 and one of IPv6
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub ip: Vec<IpNet>,
    /// Where the default route leads, for a bridge or a tap
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Ethernet address in the first network
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// Name server, instead of the host's or the network's
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// Domain in which short names are looked up
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
}

impl NetworkArguments {
    /// The networks that a container is attached to.
    pub fn networks(&self, config: &Config) -> Vec<Network> {
        let networks = match self.network.as_slice() {
            [] => &config.run.network,
            named => named,
        };
        let is_one = |network: &&Network| **network != Network::None;
        networks.iter().filter(is_one).cloned().collect()
    }
}
