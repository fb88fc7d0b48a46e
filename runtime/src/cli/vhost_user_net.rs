// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks that another process carries: `--vhost-user-net SOCKET[,ip=ADDRESS/LENGTH][,gateway=ADDRESS][,mac=MAC]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use coracle_network::MacAddress;
use coracle_network::ipnet::IpNet;

use super::network::address;

/// A network device that another process serves, and what the guest is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserNet {
    /// The Unix socket of that process.
    pub socket: PathBuf,
    /// Addresses, at most one of each family.
    pub addresses: Vec<IpNet>,
    /// Where default routes lead, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// The Ethernet address; unless given, one that nobody's vendor gave.
    pub mac: Option<MacAddress>,
}

impl FromStr for VhostUserNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let socket = words.next().filter(|socket| !socket.is_empty());
        let mut net = Self {
            socket: socket.ok_or("the socket is missing")?.into(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mac: None,
        };
        for word in words {
            match word.split_once('=') {
                Some(("ip", value)) => net.addresses.push(address(value)?),
                Some(("gateway", value)) => {
                    let gateway = value.parse();
                    net.gateways
                        .push(gateway.map_err(|_| format!("the gateway {value:?} is no address"))?);
                }
                Some(("mac", value)) if net.mac.is_none() => {
                    let mac: MacAddress = value.parse().map_err(|error| format!("{error}"))?;
                    net.mac = Some(mac);
                }
                _ => {
                    return Err(format!(
                        "{word:?} is not known; ip=, gateway= and one mac= are"
                    ));
                }
            }
        }
        let of_addresses = net.addresses.iter().map(IpNet::addr);
        require_one_of_each(of_addresses, "addresses")?;
        require_one_of_each(net.gateways.iter().copied(), "gateways")?;
        let is_lonely = |gateway: &&IpAddr| {
            let mut addresses = net.addresses.iter();
            gateway.is_ipv4() && !addresses.any(|address| address.addr().is_ipv4())
        };
        match net.gateways.iter().find(is_lonely) {
            Some(gateway) => Err(format!(
                "the gateway {gateway} needs an IPv4 address, by ip="
            )),
            None => Ok(net),
        }
    }
}

fn require_one_of_each(addresses: impl Iterator<Item = IpAddr>, what: &str) -> Result<(), String> {
    let (of_ipv4, of_ipv6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    for (family, found) in [("IPv4", of_ipv4), ("IPv6", of_ipv6)] {
        if found.len() > 1 {
            return Err(format!("there can be one of {family} {what}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn all_of_it_is_read() {
        let text = "/run/s,ip=10.0.0.2/24,ip=fd00::2/64,gateway=10.0.0.1,mac=02:00:00:00:00:01";

        let net: VhostUserNet = text.parse().unwrap();

        let expected = VhostUserNet {
            socket: "/run/s".into(),
            addresses: vec![
                "10.0.0.2/24".parse().unwrap(),
                "fd00::2/64".parse().unwrap(),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
        };
        assert_eq!(net, expected);
    }

    #[rstest]
    #[case::nothing("", "the socket is missing")]
    #[case::no_socket(",ip=10.0.0.2/24", "the socket is missing")]
    #[case::unknown(
        "/run/s,mtu=9000",
        "\"mtu=9000\" is not known; ip=, gateway= and one mac= are"
    )]
    #[case::no_value("/run/s,ip", "\"ip\" is not known; ip=, gateway= and one mac= are")]
    #[case::two_macs(
        "/s,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02",
        "\"mac=02:00:00:00:00:02\" is not known; ip=, gateway= and one mac= are"
    )]
    #[case::no_prefix(
        "/run/s,ip=10.0.0.2",
        "the length of its prefix is missing, as in 10.0.0.2/24"
    )]
    #[case::two_addresses(
        "/run/s,ip=10.0.0.2/24,ip=10.0.0.3/24",
        "there can be one of IPv4 addresses"
    )]
    #[case::two_gateways(
        "/run/s,gateway=fe80::1,gateway=fe80::2",
        "there can be one of IPv6 gateways"
    )]
    #[case::no_gateway("/run/s,gateway=there", "the gateway \"there\" is no address")]
    #[case::gateway_alone(
        "/run/s,gateway=10.0.0.1",
        "the gateway 10.0.0.1 needs an IPv4 address, by ip="
    )]
    fn what_is_wrong_is_named(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(text.parse::<VhostUserNet>().unwrap_err(), expected);
    }
}
