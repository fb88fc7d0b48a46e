// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that attaches a machine and waits to be killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use coracle_network::{Addressing, DnsOverrides, Network, NetworkConfig, PortMapping, Request};

use crate::world::World;

pub const ARGUMENT: &str = "hold-a-network";

/// Such a process, killed when dropped.
pub struct Holder {
    child: Child,
    /// The machine's first address.
    pub address: String,
}

impl Holder {
    pub fn start(world: &World, id: &str, network: &str, ports: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg(ARGUMENT)
            .arg(&world.config.state)
            .arg(&world.config.cni_configurations[0])
            .arg(&world.config.cni_plugins[0])
            .args([id, network])
            .args(ports)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut address)
            .unwrap();
        assert!(!address.is_empty(), "it did not attach");
        Self {
            child,
            address: address.trim().to_owned(),
        }
    }

    /// As the kernel kills what uses too much memory.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does.
pub fn hold() -> ! {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [state, configurations, plugins, id, network, ports @ ..] = &arguments[..] else {
        panic!("six arguments")
    };
    let config = NetworkConfig {
        state: state.into(),
        cni_configurations: vec![configurations.into()],
        cni_plugins: vec![plugins.into()],
        ..NetworkConfig::default()
    };
    let networks: Vec<Network> = vec![network.parse().unwrap()];
    let ports: Vec<PortMapping> = ports.iter().map(|port| port.parse().unwrap()).collect();
    let attachment = coracle_network::attach(&Request {
        id,
        networks: &networks,
        ports: &ports,
        addressing: &Addressing::default(),
        dns: &DnsOverrides::default(),
        config: &config,
        cancel: None,
    })
    .unwrap();
    let address = attachment.interfaces()[0].addresses.first();
    println!(
        "{}",
        address.map_or("none".to_owned(), |address| address.addr().to_string())
    );
    std::io::stdout().flush().unwrap();
    // Until it is killed, or whoever started it has ended.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0)
}
