// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run's network: made on the host, told to the guest.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use coracle_agent_api::messages::{
    CreateSandboxRequest, Interface as GuestInterface, Neighbour as GuestNeighbour,
    Route as GuestRoute,
};
use coracle_network::{Addressing, Attachment, DnsOverrides, Network, Request, attach};
use coracle_vmm::Net;

use crate::cli::NetworkArguments;
use crate::config::Config;
use crate::container::Id;

/// What the user wants of networks, as they are asked for.
struct Wishes {
    networks: Vec<Network>,
    addressing: Addressing,
    dns: DnsOverrides,
}

impl Wishes {
    fn new(arguments: &NetworkArguments, config: &Config) -> Result<Self> {
        Ok(Self {
            networks: arguments.networks(config)?,
            addressing: Addressing {
                addresses: arguments.ip.clone(),
                gateways: arguments.gateway.clone(),
                mac: arguments.mac,
                mtu: None,
            },
            dns: DnsOverrides {
                nameservers: arguments.dns.clone(),
                search: arguments.dns_search.clone(),
                options: Vec::new(),
            },
        })
    }

    fn request<'r>(
        &'r self,
        id: &'r str,
        arguments: &'r NetworkArguments,
        config: &'r Config,
    ) -> Request<'r> {
        Request {
            id,
            networks: &self.networks,
            ports: &arguments.publish,
            addressing: &self.addressing,
            dns: &self.dns,
            config: &config.network,
        }
    }
}

/// Refuses what no host can honour.
pub fn check(arguments: &NetworkArguments, config: &Config) -> Result<()> {
    let wishes = Wishes::new(arguments, config)?;
    Ok(wishes.request("rehearsal", arguments, config).check()?)
}

/// Makes the networks; nothing where there are none.
pub fn make(id: &Id, arguments: &NetworkArguments, config: &Config) -> Result<Option<Attachment>> {
    let wishes = Wishes::new(arguments, config)?;
    if wishes.networks.is_empty() {
        return Ok(None);
    }
    let request = wishes.request(id.as_str(), arguments, config);
    let attachment = attach(&request).context("cannot make the container's network")?;
    Ok(Some(attachment))
}

/// The network devices of a machine, with a descriptor each.
pub fn devices(attachment: Option<&Attachment>) -> Result<Vec<Net<OwnedFd>>> {
    let interfaces = attachment.map_or(&[][..], Attachment::interfaces);
    interfaces
        .iter()
        .map(|interface| {
            Ok(Net {
                tap: interface
                    .tap
                    .try_clone()
                    .context("cannot duplicate a tap")?,
                mac: interface.mac.bytes(),
                mtu: Some(interface.mtu),
            })
        })
        .collect()
}

/// What the guest is told of its networks.
pub fn sandbox(attachment: Option<&Attachment>) -> CreateSandboxRequest {
    let Some(attachment) = attachment else {
        return CreateSandboxRequest::default();
    };
    let interfaces = attachment.interfaces().iter();
    let routes = attachment.routes().iter();
    let neighbours = attachment.neighbours().iter();
    CreateSandboxRequest {
        interfaces: interfaces
            .map(|interface| GuestInterface {
                mac: interface.mac.bytes().into(),
                name: interface.name.clone(),
                mtu: interface.mtu.into(),
                addresses: interface
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                ..Default::default()
            })
            .collect(),
        routes: routes
            .map(|route| GuestRoute {
                destination: route.destination.to_string(),
                gateway: route
                    .gateway
                    .map_or_else(String::new, |address| address.to_string()),
                interface: route.interface.clone(),
                on_link: route.on_link,
                metric: route.metric.unwrap_or(0),
                source: route
                    .source
                    .map_or_else(String::new, |address| address.to_string()),
                ..Default::default()
            })
            .collect(),
        neighbours: neighbours
            .map(|neighbour| GuestNeighbour {
                address: neighbour.address.to_string(),
                mac: neighbour.mac.bytes().into(),
                interface: neighbour.interface.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}
