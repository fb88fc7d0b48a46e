// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which addresses guests get. What is taken, the kernel's routes say: nothing else can be out of date.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::NetworkError;
use crate::identity;
use crate::netlink::route::KernelRoute;
use crate::request::Subnet;

/// Private subnets that no common software uses by default: Docker takes 172.17 to 172.31 and 192.168 in parts of 20 bits,
/// Podman and CRI-O 10.85 and 10.88 to 10.89, Kubernetes 10.96, 10.244 and 10.42 to 10.43, libvirt 192.168.122, LXD and Incus random
/// 10.x.y.0/24, clouds and homes 10.0 to 10.10, 172.16 and the first of 192.168.
const IPV4_CANDIDATES: [[u8; 2]; 6] = [
    [10, 209],
    [10, 177],
    [10, 233],
    [10, 121],
    [172, 16],
    [192, 168],
];

const IPV4_CANDIDATE_LENGTH: u8 = 16;

/// A subnet with its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    subnet: IpNet,
}

impl Pool {
    /// The IPv4 subnet, unless there is to be none. `is_ours` tells routes through our own taps.
    pub(crate) fn ipv4(
        configured: Subnet<Ipv4Net>,
        routes: &[KernelRoute],
        is_ours: impl Fn(&KernelRoute) -> bool,
        interface: impl Fn(u32) -> String,
    ) -> Result<Option<Self>, NetworkError> {
        match configured {
            Subnet::Off => Ok(None),
            Subnet::Given(subnet) => {
                Self::given(subnet.into(), routes, is_ours, interface).map(Some)
            }
            Subnet::Auto => {
                let candidates = IPV4_CANDIDATES.map(|[a, b]| {
                    // The length is below 32.
                    IpNet::new_assert(Ipv4Addr::new(a, b, 0, 0).into(), IPV4_CANDIDATE_LENGTH)
                });
                let others = || {
                    routes
                        .iter()
                        .filter(|route| !is_ours(route) && route.destination.prefix_len() > 0)
                };
                candidates
                    .into_iter()
                    .find(|subnet| !others().any(|route| overlap(subnet, &route.destination)))
                    .map(|subnet| Some(Self { subnet }))
                    .ok_or_else(|| NetworkError::NoSubnet {
                        tried: candidates.map(|subnet| subnet.to_string()).join(", "),
                    })
            }
        }
    }

    /// The IPv6 subnet, unless there is to be none.
    pub(crate) fn ipv6(
        configured: Subnet<Ipv6Net>,
        routes: &[KernelRoute],
        is_ours: impl Fn(&KernelRoute) -> bool,
        interface: impl Fn(u32) -> String,
    ) -> Result<Option<Self>, NetworkError> {
        let subnet = match configured {
            Subnet::Off => return Ok(None),
            Subnet::Given(subnet) => subnet,
            Subnet::Auto => unique_local(identity::global_id()),
        };
        Self::given(subnet.into(), routes, is_ours, interface).map(Some)
    }

    fn given(
        subnet: IpNet,
        routes: &[KernelRoute],
        is_ours: impl Fn(&KernelRoute) -> bool,
        interface: impl Fn(u32) -> String,
    ) -> Result<Self, NetworkError> {
        let pool = Self {
            subnet: subnet.trunc(),
        };
        if pool.size() < 2 {
            return Err(NetworkError::SubnetTooSmall { subnet });
        }
        // A wider route is the user's decision: guests' own routes are narrower, and go first.
        let taken = routes.iter().find(|route| {
            !is_ours(route)
                && overlap(&pool.subnet, &route.destination)
                && route.destination.prefix_len() >= pool.subnet.prefix_len()
        });
        match taken {
            None => Ok(pool),
            Some(route) => Err(NetworkError::SubnetInUse {
                subnet,
                route: route.destination,
                interface: route.interface.map(interface).unwrap_or_default(),
            }),
        }
    }

    /// How many addresses there are for the gateway and the guests together.
    fn size(&self) -> u128 {
        let host_bits = self.subnet.max_prefix_len() - self.subnet.prefix_len();
        let all = 1_u128.checked_shl(host_bits.into()).unwrap_or(u128::MAX);
        // Without the network's own address, and IPv4's broadcast address.
        let unused = if self.subnet.addr().is_ipv4() { 2 } else { 1 };
        all.saturating_sub(unused)
    }

    /// All of its addresses.
    pub(crate) const fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The first address.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.nth(0)
    }

    /// The address after so many others of the gateway and the guests.
    fn nth(&self, index: u128) -> IpAddr {
        match self.subnet.network() {
            IpAddr::V4(network) => {
                // An IPv4 subnet's size fits, and stays below its broadcast address.
                let offset = u32::try_from(index + 1).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(network.to_bits().saturating_add(offset)).into()
            }
            IpAddr::V6(network) => {
                Ipv6Addr::from_bits(network.to_bits().saturating_add(index).saturating_add(1))
                    .into()
            }
        }
    }

    /// An address as that of one interface alone.
    pub(crate) fn single(address: IpAddr) -> IpNet {
        address.into()
    }

    /// Free addresses for a machine, the one that it had last first, if that is free.
    pub(crate) fn free<'a>(
        &self,
        id: &str,
        routes: &'a [KernelRoute],
    ) -> impl Iterator<Item = IpAddr> + use<'a> {
        let taken: HashSet<IpAddr> = routes
            .iter()
            .filter(|route| route.destination.prefix_len() == route.destination.max_prefix_len())
            .map(|route| route.destination.addr())
            .collect();
        // Of a wide subnet, four billion addresses are used: the last 32 bits.
        let guests = (self.size() - 1).min(1 << 32);
        let start = u128::from(identity::address_seed(id)) % guests;
        let pool = *self;
        (0..guests)
            .map(move |step| pool.nth(1 + (start + step) % guests))
            .filter(move |address| !taken.contains(address))
    }

    /// Whether a user may have this address.
    pub(crate) fn check_guest(&self, address: IpAddr) -> Result<(), NetworkError> {
        let refuse = |reason: String| Err(NetworkError::BadAddress { address, reason });
        if !self.subnet.contains(&address) {
            return refuse(format!("it is not of the subnet {}", self.subnet));
        }
        if address == self.gateway() {
            return refuse("it is the gateway's".to_owned());
        }
        if address == self.subnet.network()
            || (address.is_ipv4() && address == self.subnet.broadcast())
        {
            return refuse(format!(
                "it is the first or the last of the subnet {}",
                self.subnet
            ));
        }
        Ok(())
    }

    pub(crate) fn exhausted(&self) -> NetworkError {
        NetworkError::Exhausted {
            subnet: self.subnet,
        }
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The first subnet of a host's unique local prefix (RFC 4193).
fn unique_local(global_id: [u8; 5]) -> Ipv6Net {
    const LENGTH: u8 = 64;
    let [a, b, c, d, e] = global_id;
    let prefix = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // The length is below 128.
    Ipv6Net::new_assert(prefix, LENGTH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn route(destination: &str) -> KernelRoute {
        KernelRoute {
            destination: destination.parse().unwrap(),
            gateway: None,
            interface: Some(2),
            metric: None,
            source: None,
            is_on_link: false,
            is_of_kernel: false,
        }
    }

    fn pool(subnet: &str) -> Pool {
        Pool {
            subnet: subnet.parse().unwrap(),
        }
    }

    fn ipv4(
        configured: Subnet<Ipv4Net>,
        routes: &[&str],
        ours: &[&str],
    ) -> Result<Option<Pool>, NetworkError> {
        let ours: Vec<KernelRoute> = ours.iter().map(|route| self::route(route)).collect();
        let mut all: Vec<KernelRoute> = routes.iter().map(|route| self::route(route)).collect();
        all.extend(ours.clone());
        Pool::ipv4(
            configured,
            &all,
            |route| ours.contains(route),
            |_| "eth0".to_owned(),
        )
    }

    #[rstest]
    #[case::nothing(&[], "10.209.0.0/16")]
    #[case::default_route_is_no_collision(&["0.0.0.0/0"], "10.209.0.0/16")]
    #[case::inside(&["10.209.3.0/24"], "10.177.0.0/16")]
    #[case::around(&["10.0.0.0/8"], "172.16.0.0/16")]
    #[case::beside(&["10.208.0.0/16", "10.210.0.0/16"], "10.209.0.0/16")]
    fn subnet_is_the_first_that_no_route_leads_into(
        #[case] routes: &[&str],
        #[case] expected: &str,
    ) {
        assert_eq!(
            ipv4(Subnet::Auto, routes, &[]).unwrap(),
            Some(pool(expected))
        );
    }

    #[test]
    fn our_own_routes_do_not_move_the_subnet() {
        let chosen = ipv4(Subnet::Auto, &[], &["10.209.7.7/32"]).unwrap();

        assert_eq!(chosen, Some(pool("10.209.0.0/16")));
    }

    #[test]
    fn host_with_routes_everywhere_is_told_to_configure() {
        let error = ipv4(
            Subnet::Auto,
            &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"],
            &[],
        )
        .unwrap_err();

        assert!(matches!(error, NetworkError::NoSubnet { .. }), "{error}");
    }

    #[rstest]
    #[case::same("10.1.0.0/16", "10.1.0.0/16", false)]
    #[case::inside("10.1.0.0/16", "10.1.2.0/24", false)]
    #[case::wider("10.1.0.0/16", "10.0.0.0/8", true)]
    #[case::beside("10.1.0.0/16", "10.2.0.0/16", true)]
    fn configured_subnet_may_be_part_of_a_wider_route(
        #[case] subnet: &str,
        #[case] route: &str,
        #[case] is_taken: bool,
    ) {
        let result = ipv4(Subnet::Given(subnet.parse().unwrap()), &[route], &[]);

        assert_eq!(result.is_ok(), is_taken);
    }

    #[rstest]
    #[case("10.0.0.0/30", true)]
    #[case("10.0.0.0/31", false)]
    #[case("10.0.0.0/32", false)]
    #[case("0.0.0.0/0", true)]
    fn subnet_holds_a_gateway_and_a_guest(#[case] subnet: &str, #[case] is_enough: bool) {
        assert_eq!(
            ipv4(Subnet::Given(subnet.parse().unwrap()), &[], &[]).is_ok(),
            is_enough
        );
    }

    #[test]
    fn smallest_subnet_has_one_guest() {
        let pool = pool("10.0.0.0/30");

        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(
            pool.free("any", &[]).collect::<Vec<_>>(),
            [Ipv4Addr::new(10, 0, 0, 2)]
        );
        assert_eq!(pool.free("any", &[route("10.0.0.2/32")]).next(), None);
    }

    #[test]
    fn each_address_of_a_subnet_is_found_once() {
        let mut found: Vec<_> = pool("10.0.0.0/24").free("any", &[]).collect();
        found.sort();
        found.dedup();

        assert_eq!(found.len(), 253);
    }

    #[test]
    fn wide_subnet_is_searched_from_the_machines_place_at_once() {
        let pool = pool("fd00::/64");
        let first = pool.free("web", &[]).next().unwrap();

        assert_eq!(pool.free("web", &[]).next(), Some(first));
        assert_ne!(
            pool.free("web", &[route(&format!("{first}/128"))]).next(),
            Some(first)
        );
    }

    #[rstest]
    #[case("10.0.0.2", true)]
    #[case("10.0.0.1", false)]
    #[case("10.0.0.0", false)]
    #[case("10.0.0.255", false)]
    #[case("10.0.1.2", false)]
    #[case("fd00::2", false)]
    fn user_may_have_a_guests_address_of_the_subnet(
        #[case] address: &str,
        #[case] is_allowed: bool,
    ) {
        assert_eq!(
            pool("10.0.0.0/24")
                .check_guest(address.parse().unwrap())
                .is_ok(),
            is_allowed
        );
    }

    #[test]
    fn unique_local_subnet_is_of_the_local_range() {
        assert_eq!(
            unique_local([1, 2, 3, 4, 5]).to_string(),
            "fd01:203:405::/64"
        );
    }

    proptest! {
        #[test]
        fn chosen_address_is_a_guests(bits in any::<u32>(), length in 0_u8..=30, id in "[a-z]{1,8}") {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(bits), length).unwrap().trunc();
            let pool = Pool { subnet: subnet.into() };

            let address = pool.free(&id, &[]).next().unwrap();

            prop_assert!(pool.check_guest(address).is_ok(), "{address} of {subnet}");
        }

        #[test]
        fn chosen_address_of_ipv6_is_a_guests(bits in any::<u128>(), length in 0_u8..=126, id in "[a-z]{1,8}") {
            let subnet = Ipv6Net::new(Ipv6Addr::from_bits(bits), length).unwrap().trunc();
            let pool = Pool { subnet: subnet.into() };

            let address = pool.free(&id, &[]).next().unwrap();

            prop_assert!(pool.check_guest(address).is_ok(), "{address} of {subnet}");
        }
    }
}
