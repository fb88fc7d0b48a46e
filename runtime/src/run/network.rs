// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run's network: made on the host, told to the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    CreateSandboxRequest, Interface as GuestInterface, Neighbour as GuestNeighbour,
    Route as GuestRoute,
};
use coracle_network::{
    Addressing, Attachment, DnsOverrides, Network, NetworkError, Request, attach,
};
use coracle_vmm::Net;

use super::patience::Interrupted;
use super::signals::Forwarding;
use crate::cli::NetworkArguments;
use crate::config::Config;
use crate::container::{Containers, Id};

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
        cancel: Option<BorrowedFd<'r>>,
    ) -> Request<'r> {
        Request {
            id,
            networks: &self.networks,
            ports: &arguments.publish,
            addressing: &self.addressing,
            dns: &self.dns,
            config: &config.network,
            cancel,
        }
    }
}

/// Refuses what no host can honour.
pub fn check(arguments: &NetworkArguments, config: &Config) -> Result<()> {
    let wishes = Wishes::new(arguments, config)?;
    Ok(wishes
        .request("rehearsal", arguments, config, None)
        .check()?)
}

/// Makes the networks; nothing where there are none. Once one of `signals` has come, no plugin is waited for any more: what
/// it started ends with it, and what there is by then is the janitor's to remove.
pub fn make(
    id: &Id,
    arguments: &NetworkArguments,
    config: &Config,
    signals: &mut Forwarding,
    containers: &Containers,
) -> Result<Option<Attachment>> {
    let wishes = Wishes::new(arguments, config)?;
    if wishes.networks.is_empty() {
        return Ok(None);
    }
    let request = wishes.request(id.as_str(), arguments, config, Some(signals.as_fd()));
    match attach(&request) {
        Err(NetworkError::Cancelled { .. }) if let Some(signal) = signals.pending() => {
            Err(Interrupted(signal).into())
        }
        attached => attached
            .map(Some)
            .map_err(|error| by_name(error, containers))
            .context("cannot make the container's network"),
    }
}

/// Names the container whose machine has a port.
fn by_name(error: NetworkError, containers: &Containers) -> Error {
    match &error {
        NetworkError::PortOfMachine {
            address,
            port,
            protocol,
            id,
        } if let Ok(found) = containers.find(id) => anyhow!(
            "port {address}:{port}/{protocol} of this host is in use by container {}",
            found.record.name
        ),
        _ => error.into(),
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;
    use std::{env, fs, thread};

    use clap::Parser;
    use coracle_network::{NetworkConfig, leftovers, remove_leftovers};

    use super::*;
    use crate::container::{Places, running};
    use crate::testing::write_script;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        network: NetworkArguments,
    }

    /// A network whose plugin has its own child add something, some time after it has begun.
    fn slow_network(place: &Path) -> NetworkConfig {
        let list = r#"{"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]}"#;
        let script = "#!/bin/sh\ncd ${0%/*}\ncase $CNI_COMMAND in\n\
                      ADD) (sleep 2; touch added) & touch begun; wait;;\n\
                      DEL) rm -f added; touch deleted;;\nesac\n";
        fs::write(place.join("slow.conflist"), list).unwrap();
        write_script(&place.join("slow"), script);
        NetworkConfig {
            state: place.join("state"),
            cni_configurations: vec![place.to_owned()],
            cni_plugins: vec![place.to_owned()],
            ..NetworkConfig::default()
        }
    }

    fn containers_in(place: &Path, network: NetworkConfig) -> Containers {
        Containers::new(Places {
            containers: place.join("containers"),
            state: place.join("runs"),
            store: place.to_owned(),
            network,
        })
    }

    #[test]
    fn container_that_has_a_port_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let containers = containers_in(directory.path(), NetworkConfig::default());
        let own = directory.path().join("containers/0123456789ab");
        fs::create_dir_all(&own).unwrap();
        running("0123456789ab", "web").write(&own).unwrap();

        let [there, gone] = ["0123456789ab", "ffffffffffff"].map(|id| {
            let error = NetworkError::PortOfMachine {
                address: "*".to_owned(),
                port: 80,
                protocol: "tcp",
                id: id.to_owned(),
            };
            by_name(error, &containers).to_string()
        });

        assert_eq!(
            there,
            "port *:80/tcp of this host is in use by container web"
        );
        assert_eq!(
            gone,
            "port *:80/tcp of this host is in use by machine ffffffffffff"
        );
    }

    #[test]
    fn signal_ends_a_plugin_with_what_it_started() {
        const PLACE: &str = "CORACLE_TEST_IS_SIGNALLED";
        let own_name = "run::network::tests::signal_ends_a_plugin_with_what_it_started";
        let id = "0123456789ab";
        // Signals are a process's: it is another of this test that gets one.
        if let Some(place) = env::var_os(PLACE) {
            let network = slow_network(Path::new(&place));
            let config = Config {
                network,
                ..Config::of_nothing()
            };
            let words = Words::parse_from(["test", "--network", "slow"]);
            let mut signals = Forwarding::catch_ending().unwrap();
            let containers = containers_in(Path::new(&place), config.network.clone());

            let error = make(
                &id.parse().unwrap(),
                &words.network,
                &config,
                &mut signals,
                &containers,
            )
            .unwrap_err();

            let interrupted = error.downcast_ref::<Interrupted>().unwrap();
            assert_eq!(interrupted.0, libc::SIGTERM);
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let mut other = Command::new(env::current_exe().unwrap())
            .args([own_name, "--exact"])
            .env(PLACE, place)
            .spawn()
            .unwrap();
        while !place.join("begun").exists() {
            assert!(other.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(10));
        }

        let sent = rustix::process::kill_process(
            rustix::process::Pid::from_child(&other),
            rustix::process::Signal::TERM,
        );

        let status = other.wait().unwrap();
        let config = slow_network(place);
        let left = leftovers(&config).unwrap();
        remove_leftovers(id, &config).unwrap();
        thread::sleep(Duration::from_millis(2500));
        assert!(sent.is_ok() && status.success(), "{status}");
        assert_eq!(left, [id]);
        assert!(place.join("deleted").exists() && !place.join("added").exists());
    }
}
