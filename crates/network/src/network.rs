// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which network a machine is to have, as a user writes it.

use std::fmt;
use std::str::FromStr;

use crate::error::NetworkError;
use crate::name;

/// A network that a machine can be attached to.
///
/// As text: `none`, `host-nat`, `bridge:BRIDGE`, `tap:INTERFACE`, or the name of a CNI configuration list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// No network: the machine has its loopback interface alone.
    None,
    /// A tap in the host's network namespace, routed, with masquerading towards everything outside.
    #[default]
    HostNat,
    /// The CNI configuration list (or single configuration) of this name.
    Named(String),
    /// A tap that is a port of this Linux or Open vSwitch bridge, which exists.
    Bridge(String),
    /// This tap interface, which exists.
    Tap(String),
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match text {
            "none" => Ok(Self::None),
            "host-nat" => Ok(Self::HostNat),
            _ => match text.split_once(':') {
                Some(("bridge", bridge)) => {
                    name::check_interface(bridge).map(|()| Self::Bridge(bridge.to_owned()))
                }
                Some(("tap", tap)) => {
                    name::check_interface(tap).map(|()| Self::Tap(tap.to_owned()))
                }
                Some(_) => Err(NetworkError::UnknownNetworkKind {
                    text: text.to_owned(),
                }),
                None => name::check_network(text).map(|()| Self::Named(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::HostNat => formatter.write_str("host-nat"),
            Self::Named(name) => formatter.write_str(name),
            Self::Bridge(bridge) => write!(formatter, "bridge:{bridge}"),
            Self::Tap(tap) => write!(formatter, "tap:{tap}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("none", Network::None)]
    #[case("host-nat", Network::HostNat)]
    #[case("web", Network::Named("web".into()))]
    #[case("a.b_c-1", Network::Named("a.b_c-1".into()))]
    #[case("bridge:br0", Network::Bridge("br0".into()))]
    #[case("tap:vm1", Network::Tap("vm1".into()))]
    fn network_is_what_its_text_says(#[case] text: &str, #[case] network: Network) {
        assert_eq!(text.parse::<Network>().unwrap(), network);
        assert_eq!(network.to_string(), text);
    }

    #[rstest]
    #[case("")]
    #[case("..")]
    #[case("../etc")]
    #[case("a/b")]
    #[case("-a")]
    #[case("bridge:")]
    #[case("bridge:..")]
    #[case("bridge:a/b")]
    #[case("bridge:sixteen-letters-")]
    #[case("tap:")]
    #[case("tap:a b")]
    #[case("vlan:7")]
    #[case("host-nat:x")]
    fn text_that_names_no_network_is_refused(#[case] text: &str) {
        assert!(text.parse::<Network>().is_err());
    }
}
