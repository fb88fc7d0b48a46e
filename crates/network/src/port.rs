// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports of the host that lead into a machine, as a user writes them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::name::shorten;

/// The transport protocol of a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As in text.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number in IP headers.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Ports of the host, one after the other, that lead to as many ports of the machine.
///
/// As text: `[HOST_IP:][HOST_PORT[-LAST]:]PORT[-LAST][/tcp|/udp]`, an IPv6 address in brackets:
/// `8080:80`, `127.0.0.1:8080:80/udp`, `[::1]:8000-8010:80-90`, `80` (a free port of the host's choice).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; none is every address of both families, an unspecified one every address of its family.
    pub host_address: Option<IpAddr>,
    /// The first port on the host; none is a free one each.
    pub host_port: Option<u16>,
    /// The first port of the machine.
    pub port: u16,
    /// How many ports, at least one.
    pub count: u16,
    /// Their protocol.
    pub protocol: Protocol,
}

impl PortMapping {
    /// One port each, on every address of the host.
    #[must_use]
    pub const fn new(host_port: u16, port: u16, protocol: Protocol) -> Self {
        Self {
            host_address: None,
            host_port: Some(host_port),
            port,
            count: 1,
            protocol,
        }
    }

    /// The same with one port a mapping.
    pub(crate) fn single(self) -> impl Iterator<Item = Self> {
        (0..self.count).map(move |offset| Self {
            // Neither sum overflows: the ranges were checked when the mapping was made.
            host_port: self.host_port.map(|port| port.saturating_add(offset)),
            port: self.port.saturating_add(offset),
            count: 1,
            ..self
        })
    }

    /// The first port of the host that both name and only one can have. Both were checked.
    pub(crate) fn collides(self, other: Self) -> Option<u16> {
        let is_any = |address: IpAddr| address.is_unspecified();
        let meet = match (self.host_address, other.host_address) {
            (Some(one), Some(other)) => {
                one == other || one.is_ipv4() == other.is_ipv4() && (is_any(one) || is_any(other))
            }
            // Every address of both families.
            _ => true,
        };
        let last = |first: u16, count: u16| first.saturating_add(count.saturating_sub(1));
        let (mine, others) = (self.host_port?, other.host_port?);
        let first = mine.max(others);
        let is_in_both = first <= last(mine, self.count) && first <= last(others, other.count);
        (meet && is_in_both && self.protocol == other.protocol).then_some(first)
    }

    /// Refuses what [`FromStr`] could not have made: fields are public.
    pub(crate) fn check(self) -> Result<(), NetworkError> {
        let fits = |first: u16| {
            first != 0 && self.count != 0 && first.checked_add(self.count - 1).is_some()
        };
        if fits(self.port) && self.host_port.is_none_or(fits) {
            Ok(())
        } else {
            Err(NetworkError::BadPort {
                text: self.to_string(),
                reason: "ports are from 1 to 65535",
            })
        }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |formatter: &mut fmt::Formatter<'_>, first: u16| {
            write!(formatter, "{first}")?;
            if self.count > 1 {
                write!(
                    formatter,
                    "-{}",
                    u32::from(first) + u32::from(self.count) - 1
                )?;
            }
            Ok(())
        };
        match self.host_address {
            Some(IpAddr::V6(address)) => write!(formatter, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(formatter, "{address}:")?,
            None => {}
        }
        if let Some(port) = self.host_port {
            range(formatter, port)?;
            formatter.write_str(":")?;
        } else if self.host_address.is_some() {
            formatter.write_str(":")?;
        }
        range(formatter, self.port)?;
        write!(formatter, "/{}", self.protocol)
    }
}

impl FromStr for PortMapping {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = |reason: &'static str| NetworkError::BadPort {
            text: shorten(text),
            reason,
        };
        let (places, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((places, "tcp")) => (places, Protocol::Tcp),
            Some((places, "udp")) => (places, Protocol::Udp),
            Some(_) => return Err(refuse("its protocol is neither tcp nor udp")),
        };
        let (host, container) = match places.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None => (None, places),
        };
        let (port, last) = parse_range(container).map_err(refuse)?;
        let (host_address, host_range) = match host {
            None => (None, None),
            Some(host) => parse_host(host).map_err(refuse)?,
        };
        let count = last - port;
        if let Some((first, last)) = host_range
            && last - first != count
        {
            return Err(refuse("its two ranges differ in length"));
        }
        Ok(Self {
            host_address,
            host_port: host_range.map(|(first, _)| first),
            port,
            // A range starts at 1, so it has at most 65535 ports.
            count: count.saturating_add(1),
            protocol,
        })
    }
}

type Range = (u16, u16);

fn parse_range(text: &str) -> Result<Range, &'static str> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (parse_port(first)?, parse_port(last)?),
        None => {
            let port = parse_port(text)?;
            (port, port)
        }
    };
    if first > last {
        return Err("its range ends before it starts");
    }
    Ok((first, last))
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    // Not by `parse` alone, which takes a sign.
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("a port is a number");
    }
    match text.parse() {
        Ok(0) | Err(_) => Err("ports are from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

/// What stands before the last colon: an address, ports, or both.
fn parse_host(text: &str) -> Result<(Option<IpAddr>, Option<Range>), &'static str> {
    let (address, ports) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("its bracket is not closed")?;
        let address: Ipv6Addr = address
            .parse()
            .map_err(|_| "what stands in brackets is no IPv6 address")?;
        let ports = match rest {
            "" => "",
            rest => rest
                .strip_prefix(':')
                .ok_or("a colon follows its bracket")?,
        };
        (Some(IpAddr::V6(address)), ports)
    } else if let Some((address, ports)) = text.split_once(':') {
        let address = address.parse().map_err(
            |_| "its host address is no IPv4 address; an IPv6 address stands in brackets",
        )?;
        (Some(IpAddr::V4(address)), ports)
    } else if let Ok(address) = text.parse() {
        (Some(IpAddr::V4(address)), "")
    } else {
        (None, text)
    };
    let ports = match ports {
        "" if address.is_some() => None,
        ports => Some(parse_range(ports)?),
    };
    Ok((address, ports))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn mapping(
        host_address: Option<&str>,
        host_port: Option<u16>,
        port: u16,
        count: u16,
        protocol: Protocol,
    ) -> PortMapping {
        PortMapping {
            host_address: host_address.map(|address| address.parse().unwrap()),
            host_port,
            port,
            count,
            protocol,
        }
    }

    #[rstest]
    #[case("80", mapping(None, None, 80, 1, Protocol::Tcp))]
    #[case("80/udp", mapping(None, None, 80, 1, Protocol::Udp))]
    #[case("8080:80", mapping(None, Some(8080), 80, 1, Protocol::Tcp))]
    #[case("8080:80/tcp", mapping(None, Some(8080), 80, 1, Protocol::Tcp))]
    #[case(
        "8000-8010:90-100/udp",
        mapping(None, Some(8000), 90, 11, Protocol::Udp)
    )]
    #[case("90-100", mapping(None, None, 90, 11, Protocol::Tcp))]
    #[case(
        "127.0.0.1:8080:80",
        mapping(Some("127.0.0.1"), Some(8080), 80, 1, Protocol::Tcp)
    )]
    #[case(
        "127.0.0.1::80",
        mapping(Some("127.0.0.1"), None, 80, 1, Protocol::Tcp)
    )]
    #[case("127.0.0.1:80", mapping(Some("127.0.0.1"), None, 80, 1, Protocol::Tcp))]
    #[case(
        "[::1]:8080:80",
        mapping(Some("::1"), Some(8080), 80, 1, Protocol::Tcp)
    )]
    #[case(
        "[fd00::1]::80/udp",
        mapping(Some("fd00::1"), None, 80, 1, Protocol::Udp)
    )]
    #[case("1-65535:1-65535", mapping(None, Some(1), 1, 65535, Protocol::Tcp))]
    fn mapping_is_what_its_text_says(#[case] text: &str, #[case] expected: PortMapping) {
        assert_eq!(text.parse::<PortMapping>().unwrap(), expected);
    }

    #[rstest]
    #[case("", "a port is a number")]
    #[case("web", "a port is a number")]
    #[case("+80", "a port is a number")]
    #[case("0", "from 1 to 65535")]
    #[case("65536", "from 1 to 65535")]
    #[case("8080:", "a port is a number")]
    #[case(":80", "a port is a number")]
    #[case("80/sctp", "neither tcp nor udp")]
    #[case("80/", "neither tcp nor udp")]
    #[case("90-80", "ends before it starts")]
    #[case("8000-8010:80-89", "differ in length")]
    #[case("8000-8010:80", "differ in length")]
    #[case("::1:8080:80", "in brackets")]
    #[case("[::1:80", "not closed")]
    #[case("[::1]8080:80", "a colon follows")]
    #[case("[10.0.0.1]:1:80", "no IPv6 address")]
    #[case("localhost:80:80", "no IPv4 address")]
    fn text_that_names_no_ports_is_refused(#[case] text: &str, #[case] reason: &str) {
        let error = text.parse::<PortMapping>().unwrap_err().to_string();

        assert!(error.contains(reason), "{error}");
    }

    #[rstest]
    #[case(mapping(None, Some(65535), 1, 2, Protocol::Tcp))]
    #[case(mapping(None, Some(0), 1, 1, Protocol::Tcp))]
    #[case(mapping(None, None, 65535, 2, Protocol::Tcp))]
    #[case(mapping(None, None, 1, 0, Protocol::Tcp))]
    fn mapping_beyond_the_last_port_is_refused(#[case] mapping: PortMapping) {
        assert!(mapping.check().is_err());
    }

    #[rstest]
    #[case("80:80", "80:81", Some(80))]
    #[case("80:80", "127.0.0.1:80:81", Some(80))]
    #[case("0.0.0.0:80:80", "127.0.0.1:80:81", Some(80))]
    #[case("0.0.0.0:80:80", "[::]:80:81", None)]
    #[case("127.0.0.1:80:80", "127.0.0.2:80:80", None)]
    #[case("[::]:80:80", "[::1]:80:80", Some(80))]
    #[case("80:80", "80:80/udp", None)]
    #[case("8000-8010:1-11", "8010-8020:1-11", Some(8010))]
    #[case("8000-8010:1-11", "8011-8020:1-10", None)]
    #[case("8005:1", "8000-8010:1-11", Some(8005))]
    #[case("65535:1", "65534-65535:1-2", Some(65535))]
    #[case("80", "80", None)]
    fn mappings_collide_where_only_one_can_have_the_port(
        #[case] one: PortMapping,
        #[case] other: PortMapping,
        #[case] expected: Option<u16>,
    ) {
        assert_eq!(one.collides(other), expected);
        assert_eq!(other.collides(one), expected);
    }

    proptest! {
        #[test]
        fn mapping_is_read_as_it_is_printed(
            address in proptest::option::of(any::<IpAddr>()),
            host_port in proptest::option::of(1u16..=60000),
            port in 1u16..=60000,
            count in 1u16..=5000,
            udp in any::<bool>(),
        ) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let mapping = PortMapping { host_address: address, host_port, port, count, protocol };

            prop_assert_eq!(mapping.to_string().parse::<PortMapping>().unwrap(), mapping);
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = text.parse::<PortMapping>();
        }
    }
}
