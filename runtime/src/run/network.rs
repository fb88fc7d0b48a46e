// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run's network: made on the host, told to the guest.

use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    CreateSandboxRequest, Interface as GuestInterface, Neighbour as GuestNeighbour,
    Route as GuestRoute,
};
use coracle_network::{
    Addressing, Attachment, DnsOverrides, MacAddress, Network, NetworkError, Request, attach,
};
use coracle_vmm::Net;

use super::patience::Interrupted;
use super::signals::Forwarding;
use crate::cli::{NetworkArguments, VhostUserNet};
use crate::config::Config;
use crate::container::{Containers, Id};

/// What lies between the metrics of an interface's routes and the next one's.
const METRIC_STEP: u32 = 100;

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

/// The Ethernet address of a device that another process serves, the one at this place among those of this container.
pub fn served_mac(id: &str, place: usize, net: &VhostUserNet) -> MacAddress {
    net.mac.unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        hasher.write(id.as_bytes());
        hasher.write_usize(place);
        let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
        MacAddress::locally_administered([a, b, c, d, e])
    })
}

/// What the guest is told of its networks: those that were made, and those that others carry.
pub fn sandbox(
    id: &str,
    attachment: Option<&Attachment>,
    served: &[VhostUserNet],
) -> CreateSandboxRequest {
    let mut sandbox = attachment.map(of_attachment).unwrap_or_default();
    for (place, net) in served.iter().enumerate() {
        let index = sandbox.interfaces.len();
        // CNI names interfaces otherwise.
        let is_free = |name: &String| sandbox.interfaces.iter().all(|other| other.name != *name);
        let mut names = (index..).map(|number| format!("eth{number}"));
        let name = names.find(is_free).unwrap_or_default();
        sandbox.interfaces.push(GuestInterface {
            mac: served_mac(id, place, net).bytes().into(),
            name: name.clone(),
            addresses: net.addresses.iter().map(ToString::to_string).collect(),
            ..Default::default()
        });
        sandbox.routes.extend(default_routes(net, &name, index));
    }
    sandbox
}

/// Those of later interfaces come after those of earlier ones.
fn default_routes(net: &VhostUserNet, interface: &str, index: usize) -> Vec<GuestRoute> {
    let metric = u32::try_from(index).unwrap_or(u32::MAX);
    let routes = net.gateways.iter().map(|gateway| GuestRoute {
        destination: match gateway {
            IpAddr::V4(_) => "0.0.0.0/0".to_owned(),
            IpAddr::V6(_) => "::/0".to_owned(),
        },
        gateway: gateway.to_string(),
        interface: interface.to_owned(),
        on_link: !net
            .addresses
            .iter()
            .any(|address| address.contains(gateway)),
        metric: metric.saturating_mul(METRIC_STEP),
        ..Default::default()
    });
    routes.collect()
}

fn of_attachment(attachment: &Attachment) -> CreateSandboxRequest {
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

    fn net(words: &str) -> VhostUserNet {
        format!("/run/socket{words}").parse().unwrap()
    }

    #[test]
    fn addresses_of_devices_differ_unless_they_are_given() {
        let mac = |id, place| served_mac(id, place, &net(""));

        assert_ne!(mac("0123456789ab", 0), mac("0123456789ab", 1));
        assert_ne!(mac("0123456789ab", 0), mac("0123456789ac", 0));
        assert!(mac("0123456789ab", 0).is_unicast());
        let given = net(",mac=02:00:00:00:00:01");
        assert_eq!(
            served_mac("0123456789ab", 0, &given).to_string(),
            "02:00:00:00:00:01"
        );
    }

    #[test]
    fn guest_is_told_of_what_others_carry() {
        let served = [
            net(",ip=10.0.0.2/24,gateway=10.0.0.1"),
            net(",ip=fd00::2/64,gateway=fe80::1"),
        ];

        let sandbox = sandbox("0123456789ab", None, &served);

        let interfaces: Vec<_> = sandbox.interfaces.iter().collect();
        let names = interfaces
            .iter()
            .map(|it| (&it.name[..], &it.addresses[0][..]));
        let expected = [("eth0", "10.0.0.2/24"), ("eth1", "fd00::2/64")];
        assert_eq!(names.collect::<Vec<_>>(), expected);
        let routes = sandbox.routes.iter();
        let routes = routes.map(|it| {
            (
                &it.destination[..],
                &it.interface[..],
                it.on_link,
                it.metric,
            )
        });
        let expected = [("0.0.0.0/0", "eth0", false, 0), ("::/0", "eth1", true, 100)];
        assert_eq!(routes.collect::<Vec<_>>(), expected);
        let mac = served_mac("0123456789ab", 1, &served[1]);
        assert_eq!(sandbox.interfaces[1].mac, mac.bytes());
    }

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
