// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes a machine's network and shows what a VMM and its guest get. Takes root.
//!
//! ```text
//! tap ID [NETWORK [PORT]...]
//! ```

use std::error::Error;
use std::os::fd::AsRawFd;

use coracle_network::{Addressing, DnsOverrides, Network, NetworkConfig, PortMapping, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let id = arguments
        .next()
        .ok_or("the first argument is the machine's id")?;
    let network: Network = arguments.next().as_deref().unwrap_or("host-nat").parse()?;
    let ports = arguments
        .map(|port| port.parse())
        .collect::<Result<Vec<PortMapping>, _>>()?;

    let attachment = coracle_network::attach(&Request {
        id: &id,
        networks: &[network],
        ports: &ports,
        addressing: &Addressing::default(),
        dns: &DnsOverrides::default(),
        config: &NetworkConfig {
            state: "/run/coracle-network-example".into(),
            ..NetworkConfig::default()
        },
        cancel: None,
    })?;

    for interface in attachment.interfaces() {
        println!(
            "the VMM's network device: descriptor {}, MAC {}, MTU {}",
            interface.tap.as_raw_fd(),
            interface.mac,
            interface.mtu
        );
        for address in &interface.addresses {
            println!(
                "in the guest: ip address add {address} dev {}",
                interface.name
            );
        }
    }
    for route in attachment.routes() {
        let gateway = route
            .gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        let on_link = if route.on_link { " onlink" } else { "" };
        println!(
            "in the guest: ip route add {}{gateway} dev {}{on_link}",
            route.destination, route.interface
        );
    }
    print!("{}", attachment.dns().to_resolv_conf());
    for port in attachment.ports() {
        println!("published: {port}");
    }

    println!("Enter removes it.");
    std::io::stdin().read_line(&mut String::new())?;
    attachment.detach()?;
    Ok(())
}
