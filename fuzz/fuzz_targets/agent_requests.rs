// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent reads of its host beside a spec: a network, a further process, the index of modules. What it takes is
//! what it can do, and whatever it says about the rest can be shown.
#![no_main]

use std::path::Path;

use arbitrary::Arbitrary;
use coracle_agent::modules::index::Index;
use coracle_agent::network::Plan;
use coracle_agent::spec::Process;
use coracle_agent_api::ErrorKind;
use coracle_agent_api::messages;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'i> {
    Network {
        interfaces: Vec<Interface<'i>>,
        routes: Vec<Route<'i>>,
        neighbours: Vec<(Address<'i>, &'i [u8], u8)>,
    },
    Process(&'i [u8]),
    Modules {
        index: &'i str,
        asked_for: &'i str,
    },
}

#[derive(Arbitrary, Debug)]
struct Interface<'i> {
    mac: Mac<'i>,
    name: Option<&'i str>,
    addresses: Vec<Prefix<'i>>,
}

#[derive(Arbitrary, Debug)]
enum Mac<'i> {
    Six([u8; 6]),
    Bytes(&'i [u8]),
}

#[derive(Arbitrary, Debug)]
struct Route<'i> {
    destination: Prefix<'i>,
    gateway: Option<Address<'i>>,
    interface: u8,
    source: Option<Address<'i>>,
}

#[derive(Arbitrary, Debug)]
enum Address<'i> {
    V4([u8; 4]),
    V6([u8; 16]),
    Text(&'i str),
}

#[derive(Arbitrary, Debug)]
enum Prefix<'i> {
    Of(Address<'i>, u8),
    Text(&'i str),
}

impl Address<'_> {
    fn text(&self) -> String {
        match self {
            Self::V4(octets) => std::net::Ipv4Addr::from(*octets).to_string(),
            Self::V6(octets) => std::net::Ipv6Addr::from(*octets).to_string(),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

impl Prefix<'_> {
    fn text(&self) -> String {
        match self {
            Self::Of(address, length) => format!("{}/{length}", address.text()),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

fn name_of(number: u8) -> String {
    format!("eth{}", number % 4)
}

fn read_network(
    interfaces: &[Interface<'_>],
    routes: &[Route<'_>],
    neighbours: &[(Address<'_>, &[u8], u8)],
) {
    let interfaces: Vec<_> = interfaces
        .iter()
        .zip(0..)
        .map(|(interface, number)| messages::Interface {
            mac: match interface.mac {
                Mac::Six(mac) => mac.to_vec(),
                Mac::Bytes(bytes) => bytes.to_vec(),
            },
            name: interface
                .name
                .map_or_else(|| name_of(number), str::to_owned),
            addresses: interface.addresses.iter().map(Prefix::text).collect(),
            ..Default::default()
        })
        .collect();
    let routes: Vec<_> = routes
        .iter()
        .map(|route| messages::Route {
            destination: route.destination.text(),
            gateway: route
                .gateway
                .as_ref()
                .map(Address::text)
                .unwrap_or_default(),
            interface: name_of(route.interface),
            source: route.source.as_ref().map(Address::text).unwrap_or_default(),
            ..Default::default()
        })
        .collect();
    let neighbours: Vec<_> = neighbours
        .iter()
        .map(|(address, mac, interface)| messages::Neighbour {
            address: address.text(),
            mac: mac.to_vec(),
            interface: name_of(*interface),
            ..Default::default()
        })
        .collect();

    match Plan::read(&interfaces, &routes, &neighbours) {
        Ok(plan) => {
            assert_eq!(plan.is_empty(), interfaces.is_empty());
            for interface in &interfaces {
                assert!((1..=15).contains(&interface.name.len()));
                assert!(!interface.name.contains(['/', '\0', ' ']));
            }
        }
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(!error.message.contains(char::is_control), "{error:?}");
            assert!(error.message.len() < 4096);
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Network {
            interfaces,
            routes,
            neighbours,
        } => read_network(&interfaces, &routes, &neighbours),
        Input::Process(json) => {
            let Ok(process) = Process::parse(json) else {
                return;
            };
            assert!(
                process
                    .args
                    .first()
                    .is_some_and(|command| !command.is_empty())
            );
            assert!(process.cwd.starts_with('/'));
            assert!(process.rlimits.iter().all(|limit| limit.soft <= limit.hard));
        }
        Input::Modules { index, asked_for } => {
            let modules = Index::parse(Path::new("/modules"), index);
            let files = modules.asked_for(asked_for);
            assert!(files.len() <= index.lines().count());
        }
    }
});
