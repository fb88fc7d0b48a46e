// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks that other programs make: the Container Network Interface, specification 1.0
//! (<https://www.cni.dev/docs/spec/>).

mod config;
mod join;
mod plugin;
mod result;

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use config::ConfigurationList;
pub(crate) use join::join;
pub use result::CniResult;

use crate::dns::Dns;
use crate::error::NetworkError;
use crate::name;
use crate::port::PortMapping;
use crate::request::{Addressing, NetworkConfig};
use plugin::Invocation;

/// Versions whose results say what these do; older ones have another form.
const FIRST_VERSION_WITH_CHECK: (u32, u32) = (0, 4);

/// One network of a machine: enough to remove it again, whatever becomes of its configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CniAttachment {
    list: ConfigurationList,
    /// The interface's name in the namespace.
    pub(crate) interface: String,
    /// By capability, what is asked of plugins that have it.
    capabilities: Map<String, Value>,
    /// The last plugin's, once there is one.
    result: Option<Value>,
}

/// What a machine asks of a network beyond being attached to it.
pub(crate) struct Arguments<'a> {
    pub(crate) ports: &'a [PortMapping],
    pub(crate) addressing: &'a Addressing,
}

impl CniAttachment {
    pub(crate) fn network(&self) -> &str {
        self.list.name()
    }

    /// Whether it may be acted upon: it was read from a file.
    pub(crate) fn validate(&self) -> Result<(), String> {
        name::check_interface(&self.interface).map_err(|error| error.to_string())?;
        self.list.validate()
    }

    /// Whether its first plugin is of this type, and no other is.
    pub(crate) fn begins_with(&self, plugin: &str) -> bool {
        let mut kinds = self.list.plugins().iter().map(config::plugin_type);
        kinds.next() == Some(plugin) && !kinds.any(|kind| kind == plugin)
    }

    /// What the last plugin said, as far as it was valid.
    pub(crate) fn result(&self) -> CniResult {
        self.result
            .clone()
            .and_then(|value| CniResult::from_value(value).ok())
            .unwrap_or_default()
    }

    /// What the network says of names.
    pub(crate) fn dns(&self) -> Dns {
        self.result().to_dns()
    }

    /// One plugin's input.
    fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        self.list.input(plugin, &self.capabilities, previous)
    }
}

/// Finds the configuration and its plugins; says whether its plugins publish the ports.
pub(crate) fn plan(
    config: &NetworkConfig,
    name: &str,
    index: usize,
    arguments: &Arguments<'_>,
) -> Result<(CniAttachment, bool), NetworkError> {
    let list = ConfigurationList::find(&config.cni_configurations, name)?;
    // Before any of them is run: then there is nothing to undo.
    for plugin in list.plugins() {
        plugin::find(config, list.name(), config::plugin_type(plugin))?;
    }
    let publishes = list.has_capability("portMappings");
    let mut capabilities = Map::new();
    if publishes && !arguments.ports.is_empty() {
        let mappings = arguments
            .ports
            .iter()
            .copied()
            .flat_map(PortMapping::single);
        capabilities.insert(
            "portMappings".to_owned(),
            mappings.map(port_mapping).collect(),
        );
    }
    if !arguments.addressing.addresses.is_empty() {
        require(
            &list,
            "ips",
            arguments
                .addressing
                .addresses
                .first()
                .map(ipnet::IpNet::addr),
        )?;
        let addresses = arguments
            .addressing
            .addresses
            .iter()
            .map(|address| Value::from(address.to_string()));
        capabilities.insert("ips".to_owned(), addresses.collect());
    }
    if let Some(mac) = arguments.addressing.mac {
        // Another address than its plugins know would get no frames.
        if !list.has_capability("mac") {
            return Err(NetworkError::NotForUsers {
                network: name.to_owned(),
                what: "Ethernet address",
                hint: ": none of its plugins has the capability mac",
            });
        }
        capabilities.insert("mac".to_owned(), mac.to_string().into());
    }
    let planned = CniAttachment {
        list,
        interface: format!("eth{index}"),
        capabilities,
        result: None,
    };
    Ok((planned, publishes && !arguments.ports.is_empty()))
}

fn require(
    list: &ConfigurationList,
    capability: &str,
    address: Option<std::net::IpAddr>,
) -> Result<(), NetworkError> {
    match address {
        Some(address) if !list.has_capability(capability) => Err(NetworkError::BadAddress {
            address,
            reason: format!(
                "no plugin of network {:?} has the capability {capability}",
                list.name()
            ),
        }),
        _ => Ok(()),
    }
}

/// As CNI's conventions have it, one port each.
fn port_mapping(mapping: PortMapping) -> Value {
    let mut value = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.port,
        "protocol": mapping.protocol.to_string(),
    });
    if let Some(address) = mapping.host_address {
        value["hostIP"] = address.to_string().into();
    }
    value
}

/// Runs the plugins in their order, each with the result of the one before (CNI `ADD`).
pub(crate) fn add(
    config: &NetworkConfig,
    id: &str,
    network: &mut CniAttachment,
    namespace: &str,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(), NetworkError> {
    let mut previous: Option<Value> = None;
    for plugin in network.list.plugins() {
        let answer = Invocation {
            command: "ADD",
            id,
            namespace: Some(namespace),
            interface: &network.interface,
            network: network.list.name(),
            cancel,
        }
        .run(config, plugin, &network.input(plugin, previous.as_ref()))?;
        let kind = config::plugin_type(plugin);
        CniResult::from_value(answer.clone()).map_err(|reason| NetworkError::PluginResult {
            plugin: kind.to_owned(),
            network: network.list.name().to_owned(),
            command: "ADD",
            reason,
        })?;
        previous = Some(answer);
    }
    network.result = previous;
    Ok(())
}

/// Asks the plugins whether all is as it should be (CNI `CHECK`).
pub(crate) fn check(
    config: &NetworkConfig,
    id: &str,
    network: &CniAttachment,
    namespace: &str,
) -> Result<(), NetworkError> {
    if network.list.disables_check() || network.list.version() < FIRST_VERSION_WITH_CHECK {
        return Ok(());
    }
    for plugin in network.list.plugins() {
        Invocation {
            command: "CHECK",
            id,
            namespace: Some(namespace),
            interface: &network.interface,
            network: network.list.name(),
            cancel: None,
        }
        .run(
            config,
            plugin,
            &network.input(plugin, network.result.as_ref()),
        )?;
    }
    Ok(())
}

/// Runs the plugins in reverse order (CNI `DEL`): all of them, whichever fails. The namespace may be gone. Where a plugin is
/// gone together with the configuration of its network, nobody is about to bring it back: [`NetworkError::PluginGone`].
pub(crate) fn delete(
    config: &NetworkConfig,
    id: &str,
    network: &CniAttachment,
    namespace: Option<&str>,
) -> Result<(), NetworkError> {
    // Earlier versions of the specification give DEL no result.
    let previous = network
        .result
        .as_ref()
        .filter(|_| network.list.version() >= FIRST_VERSION_WITH_CHECK);
    let mut first_error = None;
    for plugin in network.list.plugins().iter().rev() {
        let result = Invocation {
            command: "DEL",
            id,
            namespace,
            interface: &network.interface,
            network: network.list.name(),
            cancel: None,
        }
        .run(config, plugin, &network.input(plugin, previous));
        match result {
            Err(NetworkError::PluginMissing {
                plugin, network, ..
            }) if !is_configured(config, &network) => {
                let error = NetworkError::PluginGone { plugin, network };
                first_error = NetworkError::graver(first_error, error);
            }
            Err(error) => first_error = NetworkError::graver(first_error, error),
            Ok(_) => {}
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Whether there may still be a configuration of this name.
fn is_configured(config: &NetworkConfig, network: &str) -> bool {
    !matches!(
        ConfigurationList::find(&config.cni_configurations, network),
        Err(NetworkError::NoConfiguration { .. })
    )
}
