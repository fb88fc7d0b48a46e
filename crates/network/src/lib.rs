// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod attachment;
mod bridge;
pub mod check;
mod cni;
mod dns;
mod error;
mod firewall;
mod forwarding;
mod host_nat;
mod identity;
mod mac;
mod name;
mod namespace;
mod netlink;
mod network;
mod port;
mod publish;
mod request;
mod state;
mod subnet;
mod sysctl;
mod tap;

pub use attachment::{Attachment, Interface, Neighbour, Route, attach};
pub use dns::{Dns, DnsOverrides};
pub use error::NetworkError;
pub use ipnet;
pub use mac::MacAddress;
pub use network::Network;
pub use port::{PortMapping, Protocol};
pub use request::{Addressing, NetworkConfig, Request, Subnet};
pub use state::{Unheard, acknowledge, give_up, leftovers, remove_leftovers, sweep, unheard};

/// What fuzz targets call; no part of the interface.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::cni::{CniResult, ConfigurationList};
    pub use crate::dns::parse as parse_resolv_conf;
}
