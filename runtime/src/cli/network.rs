// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of a container's network.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use clap::Args;
use coracle_network::ipnet::IpNet;
use coracle_network::{MacAddress, Network, PortMapping};

use crate::config::Config;

/// A container's network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArguments {
    /// `host-nat`: through the host, as the host; `none`: only the machine's own loopback; NAME: what the CNI configuration of that name makes;
    /// `bridge:BRIDGE`: a port of a Linux or Open vSwitch bridge (the latter by `ovs-vsctl`); `tap:INTERFACE`: a tap that is there. These two give
    /// no IPv4 address, nor is one asked for (DHCP): --ip and --gateway do. May be given several times [default: host-nat, unless the configuration says otherwise]
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<Network>,
    /// Have ports of the host lead into the container: a free one for each where none is named, on all addresses of the
    /// host unless one is named; IPv6 in brackets, as in `[::1]:8080:80`
    #[arg(
        short,
        long,
        value_name = "[HOST_IP:][HOST_PORT[-LAST]:]PORT[-LAST][/tcp|/udp]"
    )]
    pub publish: Vec<PortMapping>,
    /// Address in the first network, with the length of its prefix; one of IPv4 and one of IPv6
    #[arg(long, value_name = "ADDRESS/LENGTH", value_parser = address)]
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
    ///
    /// # Errors
    ///
    /// Where `none` is beside others, or something is wanted of a network and there is none: what a user chooses is
    /// honoured or refused, never passed over.
    pub fn networks(&self, config: &Config) -> Result<Vec<Network>> {
        let networks = match self.network.as_slice() {
            [] => &config.run.network,
            named => named,
        };
        let is_one = |network: &&Network| **network != Network::None;
        let attached: Vec<_> = networks.iter().filter(is_one).cloned().collect();
        ensure!(
            attached.is_empty() || attached.len() == networks.len(),
            "the network none cannot be beside others"
        );
        if let Some(option) = self.first_wish().filter(|_| attached.is_empty()) {
            bail!("{option} needs a network, and the container has none");
        }
        Ok(attached)
    }

    /// The first option that says something of a network.
    fn first_wish(&self) -> Option<&'static str> {
        [
            ("--publish", self.publish.is_empty()),
            ("--ip", self.ip.is_empty()),
            ("--gateway", self.gateway.is_empty()),
            ("--mac", self.mac.is_none()),
            ("--dns", self.dns.is_empty()),
            ("--dns-search", self.dns_search.is_empty()),
        ]
        .into_iter()
        .find_map(|(option, is_unset)| (!is_unset).then_some(option))
    }
}

/// An address with the length of its prefix.
pub fn address(text: &str) -> Result<IpNet, String> {
    let ending = |address: &IpAddr| {
        if address.is_ipv4() {
            ("24", 32)
        } else {
            ("64", 128)
        }
    };
    if let Ok(net) = text.parse() {
        return Ok(net);
    }
    let (start, length) = text
        .split_once('/')
        .map_or((text, None), |(start, length)| (start, Some(length)));
    Err(match (start.parse::<IpAddr>(), length) {
        (Err(_), _) => {
            "it should be an address with the length of its prefix, as 10.0.0.5/24".to_owned()
        }
        (Ok(address), None) => {
            format!(
                "the length of its prefix is missing, as in {address}/{}",
                ending(&address).0
            )
        }
        (Ok(address), Some(_)) => {
            format!(
                "the length of its prefix should be from 0 to {}",
                ending(&address).1
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArguments,
    }

    fn networks(words: &[&str], by_default: &str) -> Result<Vec<Network>> {
        let words = [&["coracle"], words].concat();
        let mut config = Config::of_nothing();
        config.run.network = vec![by_default.parse().unwrap()];
        Line::parse_from(words).network.networks(&config)
    }

    #[rstest]
    #[case::port(&["--network=none", "-p=80:80"], "none", "--publish needs a network, and the container has none")]
    #[case::by_the_file(&["-p=80:80"], "none", "--publish needs a network, and the container has none")]
    #[case::address(&["--network=none", "--ip=10.0.0.2/24"], "host-nat", "--ip needs a network, and the container has none")]
    #[case::gateway(&["--gateway=10.0.0.1"], "none", "--gateway needs a network, and the container has none")]
    #[case::mac(&["--mac=02:00:00:00:00:01"], "none", "--mac needs a network, and the container has none")]
    #[case::dns(&["--dns=10.0.0.1"], "none", "--dns needs a network, and the container has none")]
    #[case::search(&["--dns-search=lan"], "none", "--dns-search needs a network, and the container has none")]
    #[case::none_and_one(&["--network=none", "--network=host-nat"], "none", "the network none cannot be beside others")]
    fn what_cannot_be_honoured_is_refused(
        #[case] words: &[&str],
        #[case] by_default: &str,
        #[case] expected: &str,
    ) {
        let error = networks(words, by_default).unwrap_err();

        assert_eq!(error.to_string(), expected);
    }

    #[rstest]
    #[case::no_length("10.0.0.5", "the length of its prefix is missing, as in 10.0.0.5/24")]
    #[case::no_length_of_ipv6("fd00::5", "the length of its prefix is missing, as in fd00::5/64")]
    #[case::long("10.0.0.5/33", "the length of its prefix should be from 0 to 32")]
    #[case::empty("fd00::5/", "the length of its prefix should be from 0 to 128")]
    #[case::name(
        "web",
        "it should be an address with the length of its prefix, as 10.0.0.5/24"
    )]
    fn address_is_refused_with_what_it_should_be(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(address(text).unwrap_err(), expected);
        assert!(address("10.0.0.5/24").is_ok());
    }

    #[rstest]
    #[case::by_default(&["-p=80:80"], "host-nat", &[Network::HostNat])]
    #[case::named(&["--network=host-nat", "--dns=10.0.0.1"], "none", &[Network::HostNat])]
    #[case::none(&["--network=none"], "host-nat", &[])]
    fn networks_are(
        #[case] words: &[&str],
        #[case] by_default: &str,
        #[case] expected: &[Network],
    ) {
        assert_eq!(networks(words, by_default).unwrap(), expected);
    }
}
