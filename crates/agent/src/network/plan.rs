// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host asks for, read and checked before anything is done.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use coracle_agent_api::messages::{Interface, Neighbour, Route};
use coracle_agent_api::{AgentError, ErrorKind};

use super::{Mac, Prefix};

/// The most interfaces, and addresses of one.
const INTERFACES_MAX: usize = 64;

/// The most routes, and neighbours.
const ROUTES_MAX: usize = 1024;

/// `IFNAMSIZ` of the kernel, without the final NUL.
const NAME_MAX: usize = 15;

/// A network to be set up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub(super) links: Vec<Link>,
    pub(super) routes: Vec<PlannedRoute>,
    pub(super) neighbours: Vec<PlannedNeighbour>,
}

/// An interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) mac: Mac,
    pub(super) name: String,
    /// `None` leaves it as it is.
    pub(super) mtu: Option<u32>,
    pub(super) addresses: Vec<Prefix>,
}

/// A route; its addresses are all of one family.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedRoute {
    pub(super) destination: Prefix,
    pub(super) gateway: Option<IpAddr>,
    pub(super) interface: String,
    pub(super) on_link: bool,
    pub(super) metric: u32,
    pub(super) source: Option<IpAddr>,
}

/// A neighbour.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedNeighbour {
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
    pub(super) interface: String,
}

impl Plan {
    /// Reads what the host asks for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidRequest`] names what makes no sense.
    pub fn read(
        interfaces: &[Interface],
        routes: &[Route],
        neighbours: &[Neighbour],
    ) -> Result<Self, AgentError> {
        let plan = || -> Result<Self, String> {
            at_most("interfaces", interfaces.len(), INTERFACES_MAX)?;
            at_most("routes", routes.len(), ROUTES_MAX)?;
            at_most("neighbours", neighbours.len(), ROUTES_MAX)?;
            let (mut names, mut macs) = (BTreeSet::new(), BTreeSet::new());
            let links = interfaces
                .iter()
                .map(|interface| read_interface(interface, &mut names, &mut macs))
                .collect::<Result<_, _>>()?;
            let known = |name: &str| match names.contains(name) {
                true => Ok(name.to_owned()),
                false => Err(format!(
                    "`{}` is none of the interfaces",
                    name.escape_default()
                )),
            };
            let routes = routes
                .iter()
                .map(|route| {
                    read_route(route, known).map_err(|problem| {
                        format!("route to {}: {problem}", shown(&route.destination))
                    })
                })
                .collect::<Result<_, _>>()?;
            let neighbours = neighbours
                .iter()
                .map(|neighbour| {
                    read_neighbour(neighbour, known).map_err(|problem| {
                        format!("neighbour {}: {problem}", shown(&neighbour.address))
                    })
                })
                .collect::<Result<_, _>>()?;
            Ok(Self {
                links,
                routes,
                neighbours,
            })
        };
        plan().map_err(|problem| AgentError::new(ErrorKind::InvalidRequest, problem))
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

fn at_most(what: &str, count: usize, max: usize) -> Result<(), String> {
    if count > max {
        return Err(format!("{count} {what}: at most {max}"));
    }
    Ok(())
}

fn read_interface(
    interface: &Interface,
    names: &mut BTreeSet<String>,
    macs: &mut BTreeSet<Mac>,
) -> Result<Link, String> {
    let name = interface.name.clone();
    let read = || -> Result<Link, String> {
        let mac = read_mac(&interface.mac)?;
        if !is_name(&name) || name == "lo" {
            return Err("that is not an interface's name".to_owned());
        }
        if names.contains(&name) || macs.contains(&mac) {
            return Err("its name or address is that of another as well".to_owned());
        }
        at_most("addresses", interface.addresses.len(), INTERFACES_MAX)?;
        let addresses = interface
            .addresses
            .iter()
            .map(|address| read_prefix(address))
            .collect::<Result<_, _>>()?;
        Ok(Link {
            mac,
            name: name.clone(),
            mtu: (interface.mtu != 0).then_some(interface.mtu),
            addresses,
        })
    };
    let link = read().map_err(|problem| format!("interface {}: {problem}", shown(&name)))?;
    names.insert(link.name.clone());
    macs.insert(link.mac);
    Ok(link)
}

fn read_route(
    route: &Route,
    known: impl Fn(&str) -> Result<String, String>,
) -> Result<PlannedRoute, String> {
    let Route {
        gateway, source, ..
    } = route;
    let destination = read_prefix(&route.destination)?;
    let read_same_family = |address: &str| match address {
        "" => Ok(None),
        address => read_address(address).and_then(|address| {
            if address.is_ipv4() != destination.address.is_ipv4() {
                return Err(format!("{address} is of another family"));
            }
            Ok(Some(address))
        }),
    };
    Ok(PlannedRoute {
        destination: destination.network(),
        gateway: read_same_family(gateway)?,
        interface: known(&route.interface)?,
        on_link: route.on_link,
        metric: route.metric,
        source: read_same_family(source)?,
    })
}

fn read_neighbour(
    neighbour: &Neighbour,
    known: impl Fn(&str) -> Result<String, String>,
) -> Result<PlannedNeighbour, String> {
    Ok(PlannedNeighbour {
        address: read_address(&neighbour.address)?,
        mac: read_mac(&neighbour.mac)?,
        interface: known(&neighbour.interface)?,
    })
}

fn read_mac(bytes: &[u8]) -> Result<Mac, String> {
    let mac = Mac::try_from(bytes)
        .map_err(|_| format!("a link address has 6 bytes, and not {}", bytes.len()))?;
    // A group's address is no device's, and the kernel would not take it for one.
    if mac == Mac::default() || mac[0] & 1 == 1 {
        return Err(format!("{} is not a device's link address", Hex(mac)));
    }
    Ok(mac)
}

fn read_address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{} is no IP address", shown(text)))
}

fn read_prefix(text: &str) -> Result<Prefix, String> {
    let invalid = || format!("{} is not an address with a prefix length", shown(text));
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let length = length.parse().map_err(|_| invalid())?;
    let prefix = Prefix { address, length };
    if length > prefix.bits() {
        return Err(invalid());
    }
    Ok(prefix)
}

/// `dev_valid_name` of the kernel, for names of ASCII that can be read.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(plain)
}

/// What the host wrote, so that it can be read; a little of it.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    format!("`{}`", short.escape_default())
}

impl Prefix {
    /// How many bits an address of its family has.
    pub(super) fn bits(self) -> u8 {
        match self.address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }

    /// The network, without what is the host's part of the address.
    pub(super) fn network(self) -> Self {
        let host_bits = u32::from(self.bits().saturating_sub(self.length));
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6((u128::from(address) & mask).into())
            }
        };
        Self { address, ..self }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Shows a link address as people write it.
pub(super) struct Hex(pub(super) Mac);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn interface(name: &str) -> Interface {
        Interface {
            mac: vec![2, 0, 0, 0, 0, 1],
            name: name.to_owned(),
            ..Interface::default()
        }
    }

    fn route(destination: &str, gateway: &str) -> Route {
        Route {
            destination: destination.to_owned(),
            gateway: gateway.to_owned(),
            interface: "eth0".to_owned(),
            ..Route::default()
        }
    }

    fn problem(interfaces: &[Interface], routes: &[Route], neighbours: &[Neighbour]) -> String {
        let error = Plan::read(interfaces, routes, neighbours).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        error.message
    }

    #[test]
    fn request_is_read() {
        let interface = Interface {
            mtu: 1400,
            addresses: vec!["10.88.0.5/16".to_owned(), "fd00::5/64".to_owned()],
            ..interface("eth0")
        };

        let plan = Plan::read(&[interface], &[route("10.1.2.3/8", "10.88.0.1")], &[]).unwrap();

        assert_eq!(plan.links[0].mtu, Some(1400));
        assert_eq!(plan.links[0].addresses[1].to_string(), "fd00::5/64");
        // What is not the network's is cut off, which the kernel would not do.
        assert_eq!(plan.routes[0].destination.to_string(), "10.0.0.0/8");
    }

    #[rstest]
    #[case::short_mac(Interface { mac: vec![1, 2], ..interface("eth0") }, "interface `eth0`: a link address has 6 bytes, and not 2")]
    #[case::group_mac(Interface { mac: vec![1, 0, 0, 0, 0, 1], ..interface("eth0") }, "interface `eth0`: 01:00:00:00:00:01 is not a device's link address")]
    #[case::no_name(interface(""), "interface ``: that is not an interface's name")]
    #[case::long_name(
        interface("sixteen-letters."),
        "interface `sixteen-letters.`: that is not an interface's name"
    )]
    #[case::path(interface("a/b"), "interface `a/b`: that is not an interface's name")]
    #[case::pattern(
        interface("eth%d"),
        "interface `eth%d`: that is not an interface's name"
    )]
    #[case::control(
        interface("a\nb"),
        "interface `a\\nb`: that is not an interface's name"
    )]
    #[case::loopback(interface("lo"), "interface `lo`: that is not an interface's name")]
    #[case::address(Interface { addresses: vec!["10.0.0.1".to_owned()], ..interface("eth0") }, "interface `eth0`: `10.0.0.1` is not an address with a prefix length")]
    #[case::long_prefix(Interface { addresses: vec!["10.0.0.1/33".to_owned()], ..interface("eth0") }, "interface `eth0`: `10.0.0.1/33` is not an address with a prefix length")]
    fn interface_that_makes_no_sense_is_named(
        #[case] interface: Interface,
        #[case] expected: &str,
    ) {
        assert_eq!(problem(&[interface], &[], &[]), expected);
    }

    #[rstest]
    #[case::destination(
        route("default", ""),
        "route to `default`: `default` is not an address with a prefix length"
    )]
    #[case::gateway(
        route("0.0.0.0/0", "gw"),
        "route to `0.0.0.0/0`: `gw` is no IP address"
    )]
    #[case::family(
        route("::/0", "10.0.0.1"),
        "route to `::/0`: 10.0.0.1 is of another family"
    )]
    #[case::interface(Route { interface: "eth1".to_owned(), ..route("::/0", "") }, "route to `::/0`: `eth1` is none of the interfaces")]
    fn route_that_makes_no_sense_is_named(#[case] route: Route, #[case] expected: &str) {
        assert_eq!(problem(&[interface("eth0")], &[route], &[]), expected);
    }

    #[test]
    fn neighbour_that_makes_no_sense_is_named() {
        let neighbour = Neighbour {
            address: "10.0.0.1".to_owned(),
            interface: "eth0".to_owned(),
            ..Neighbour::default()
        };

        assert_eq!(
            problem(&[interface("eth0")], &[], &[neighbour]),
            "neighbour `10.0.0.1`: a link address has 6 bytes, and not 0"
        );
    }

    #[test]
    fn interface_that_is_there_twice_is_refused() {
        assert_eq!(
            problem(&[interface("eth0"), interface("eth1")], &[], &[]),
            "interface `eth1`: its name or address is that of another as well"
        );
    }

    #[rstest]
    #[case(vec![interface("eth0"); 65], vec![], "65 interfaces: at most 64")]
    #[case(vec![], vec![route("::/0", ""); 1025], "1025 routes: at most 1024")]
    fn more_than_there_may_be_is_refused(
        #[case] interfaces: Vec<Interface>,
        #[case] routes: Vec<Route>,
        #[case] expected: &str,
    ) {
        assert_eq!(problem(&interfaces, &routes, &[]), expected);
    }

    proptest! {
        #[test]
        fn network_of_a_network_is_itself(address in any::<u128>(), length in 0..=128_u8) {
            let prefix = Prefix { address: IpAddr::V6(address.into()), length };

            let network = prefix.network();

            prop_assert_eq!(network.network(), network);
            prop_assert_eq!(network.length, length);
        }

        #[test]
        fn prefix_that_is_written_is_read_again(address in any::<u32>(), length in 0..=32_u8) {
            let prefix = Prefix { address: IpAddr::V4(address.into()), length };

            prop_assert_eq!(read_prefix(&prefix.to_string()), Ok(prefix));
        }
    }
}
