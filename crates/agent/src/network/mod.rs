// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network of the sandbox: interfaces found by their link addresses, named, addressed and brought up; routes and
//! neighbours.
//!
//! A [`Plan`] is read from what the host asks for, which refuses what makes no sense; then it is done, over netlink.

use std::net::IpAddr;

use coracle_agent_api::messages::{Interface, Neighbour, Route};
use coracle_agent_api::{AgentError, ErrorKind};

mod counters;
mod loopback;
mod netlink;
mod plan;
mod setup;

pub use counters::counters;
pub use loopback::bring_loopback_up;
pub use plan::Plan;

/// Gives this thread's network namespace what the host asks for.
///
/// # Errors
///
/// [`ErrorKind::InvalidRequest`] if it makes no sense, before anything is done; [`ErrorKind::Network`] names what the kernel
/// refuses.
pub fn set_up(
    interfaces: &[Interface],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Result<(), AgentError> {
    let plan = Plan::read(interfaces, routes, neighbours)?;
    if plan.is_empty() {
        return Ok(());
    }
    setup::apply(&plan).map_err(|problem| AgentError::new(ErrorKind::Network, problem.to_string()))
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address, or that of the network.
    pub address: IpAddr,
    /// Bits of the network, no more than the address has.
    pub length: u8,
}

/// A link address.
pub type Mac = [u8; 6];
