// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong, each with what to do about it where that is known.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Why a network could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The id cannot be the name of a directory and of a CNI container.
    #[error(
        "id {id:?} is not 1 to 128 letters, digits, '_', '.' or '-' with a letter or digit first"
    )]
    BadId {
        /// The id.
        id: String,
    },

    /// No CNI network has such a name.
    #[error(
        "network name {name:?} is not 1 to 128 letters, digits, '_', '.' or '-' with a letter or digit first"
    )]
    BadNetworkName {
        /// The name.
        name: String,
    },

    /// No interface has such a name.
    #[error("interface name {name:?} is not 1 to 15 printable characters without '/', ':' and '%'")]
    BadInterfaceName {
        /// The name.
        name: String,
    },

    /// The text is no network.
    #[error(
        "network {text:?} is none of: none, host-nat, bridge:BRIDGE, tap:INTERFACE, or the name of a CNI network"
    )]
    UnknownNetworkKind {
        /// The text.
        text: String,
    },

    /// The text is no Ethernet address of one interface.
    #[error("{text:?} is not the Ethernet address of one interface, such as 02:00:00:00:00:01")]
    BadMacAddress {
        /// The text.
        text: String,
    },

    /// What a resolver is to be told would be something else in a resolv.conf.
    #[error(
        "{what} {text:?} is not one word of a resolv.conf: 1 to 255 ASCII characters without spaces, '#' and ';'"
    )]
    BadDns {
        /// What it was to be.
        what: &'static str,
        /// The text.
        text: String,
    },

    /// The text is no port mapping.
    #[error(
        "port mapping {text:?}: {reason}; write [ADDRESS:][HOST_PORT:]PORT[/tcp|/udp], ranges as FIRST-LAST"
    )]
    BadPort {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Ports are asked for that no network of the request can publish.
    #[error("port {mapping} cannot be published: {reason}")]
    CannotPublish {
        /// The mapping.
        mapping: String,
        /// Why not.
        reason: &'static str,
    },

    /// More ports than one machine may have.
    #[error("{count} ports are to be published; one machine may have {limit}")]
    TooManyPorts {
        /// How many.
        count: usize,
        /// How many there may be.
        limit: usize,
    },

    /// Something on this host has the port.
    #[error("port {address}:{port}/{protocol} of this host is in use{}", by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default())]
    PortInUse {
        /// The host's address, as in a URL.
        address: String,
        /// The port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Who has it, if /proc says.
        by: Option<String>,
    },

    /// Another machine has the port.
    #[error("port {address}:{port}/{protocol} of this host is in use by machine {id}")]
    PortOfMachine {
        /// The host's address, as in a URL.
        address: String,
        /// The port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The machine's id.
        id: String,
    },

    /// Two mappings of one machine name the same port.
    #[error("port {port}/{protocol} of this host is named twice: {mappings}")]
    PortTwice {
        /// The port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The two mappings.
        mappings: String,
    },

    /// The host has no such address.
    #[error(
        "port {address}:{port}/{protocol} cannot be published: no interface of this host has the address {address}"
    )]
    NoSuchAddress {
        /// The address, as in a URL.
        address: String,
        /// The port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },

    /// The port cannot be held.
    #[error("port {address}:{port}/{protocol} of this host cannot be bound")]
    PortBind {
        /// The host's address, as in a URL.
        address: String,
        /// The port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// A machine of this id is attached.
    #[error("the network of {id:?} is in use by a running process")]
    InUse {
        /// The id.
        id: String,
    },

    /// What is left of a machine cannot be removed; it stays remembered.
    #[error("what is left of the network of {id:?} cannot be removed")]
    StillLeft {
        /// The id.
        id: String,
        /// Why not.
        #[source]
        source: Box<NetworkError>,
    },

    /// The state directory, or something in it.
    #[error("{path}: cannot {action}")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// A lock was not given.
    #[error("{path}: another process holds this lock for more than {seconds} seconds")]
    LockTimeout {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },

    /// The kernel refuses something about links, addresses or routes.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried, with its object.
        action: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// The kernel refuses packet filter rules.
    #[error("cannot {action} in nf_tables{}", hint_firewall(source))]
    Firewall {
        /// What was tried.
        action: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// A kernel setting cannot be read or made.
    #[error("kernel setting {path} cannot be {action}")]
    Sysctl {
        /// The file below /proc/sys.
        path: PathBuf,
        /// `read` or `set`.
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// /dev/net/tun is missing or closed to us.
    #[error(
        "/dev/net/tun cannot be opened: load the kernel module tun (modprobe tun), and run as root"
    )]
    Tun {
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// A tap interface cannot be made.
    #[error("tap interface {name} cannot be made")]
    TapCreate {
        /// The interface.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// The tap that a user names does not do.
    #[error("tap interface {name} cannot be used: {reason}")]
    TapUnusable {
        /// The interface.
        name: String,
        /// Why, and what would do.
        reason: String,
    },

    /// An interface that must exist does not.
    #[error("{kind} {name} does not exist")]
    NoInterface {
        /// What it was to be.
        kind: &'static str,
        /// The interface.
        name: String,
    },

    /// The interface is not a bridge.
    #[error("interface {name} is no Linux or Open vSwitch bridge but of kind {kind:?}")]
    NotABridge {
        /// The interface.
        name: String,
        /// What the kernel says it is.
        kind: String,
    },

    /// The subnet that the configuration gives collides with another network.
    #[error(
        "subnet {subnet} collides with the route to {route} on interface {interface}: choose another subnet"
    )]
    SubnetInUse {
        /// The subnet.
        subnet: IpNet,
        /// The route.
        route: IpNet,
        /// Where it leads.
        interface: String,
    },

    /// All of the private subnets that are tried collide with other networks.
    #[error(
        "this host has routes into every private subnet that is tried ({tried}): configure one that is free"
    )]
    NoSubnet {
        /// The subnets.
        tried: String,
    },

    /// The subnet is too small to hold a gateway and a guest.
    #[error("subnet {subnet} has no room for a gateway and a guest")]
    SubnetTooSmall {
        /// The subnet.
        subnet: IpNet,
    },

    /// All addresses are taken.
    #[error("subnet {subnet} has no free address left: choose a larger one")]
    Exhausted {
        /// The subnet.
        subnet: IpNet,
    },

    /// The address that is asked for cannot be given.
    #[error("address {address} cannot be given: {reason}")]
    BadAddress {
        /// The address.
        address: IpAddr,
        /// Why not.
        reason: String,
    },

    /// Something that the user chooses, the network does not leave to users.
    #[error("network {network} takes no {what} from the user{hint}")]
    NotForUsers {
        /// The network.
        network: String,
        /// What it is.
        what: &'static str,
        /// What would help, if anything.
        hint: &'static str,
    },

    /// A program is missing.
    #[error("program {program} is not installed: install the package {package}")]
    ToolMissing {
        /// The program.
        program: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },

    /// A program failed.
    #[error("{command} failed: {reason}")]
    ToolFailed {
        /// The program with its arguments.
        command: String,
        /// What it said.
        reason: String,
    },

    /// No CNI configuration has this name.
    #[error(
        "no CNI network {name:?} is configured in {directories}, {known}; other networks are: none, host-nat, bridge:BRIDGE, tap:INTERFACE"
    )]
    NoConfiguration {
        /// The name.
        name: String,
        /// Where was looked.
        directories: String,
        /// The networks that are there.
        known: String,
    },

    /// A CNI configuration is broken.
    #[error("CNI configuration {path}: {reason}")]
    BadConfiguration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A CNI plugin is not installed.
    #[error("CNI plugin {plugin:?} of network {network:?} is not in {directories}{hint}")]
    PluginMissing {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
        /// Where was looked.
        directories: String,
        /// What would help, if that is known.
        hint: &'static str,
    },

    /// A CNI plugin is not installed any more, and its network not configured: what it made is given up.
    #[error(
        "CNI plugin {plugin:?} is not there any more, nor is the network {network:?} configured: what it made stays"
    )]
    PluginGone {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
    },

    /// A CNI plugin is there, and cannot be started.
    #[error("CNI plugin {plugin:?} of network {network:?} cannot be started")]
    PluginStart {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },

    /// A CNI plugin says that it failed, or failed without a word.
    #[error("CNI plugin {plugin:?} of network {network:?} failed to {command}: {reason}")]
    PluginFailed {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
        /// The CNI command.
        command: &'static str,
        /// Its code, message and details, or how it ended.
        reason: String,
    },

    /// A CNI plugin does not answer.
    #[error(
        "CNI plugin {plugin:?} of network {network:?} did not finish {command} within {deadline:?} and was killed"
    )]
    PluginTimeout {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
        /// The CNI command.
        command: &'static str,
        /// How long it had.
        deadline: Duration,
    },

    /// A CNI plugin answers what the specification does not allow.
    #[error(
        "CNI plugin {plugin:?} of network {network:?} gave no valid result of {command}: {reason}"
    )]
    PluginResult {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
        /// The CNI command.
        command: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// An attachment is not wanted any more. What there is of it by then stays remembered, as if its process had been
    /// killed: [`crate::remove_leftovers`] removes it.
    #[error(
        "the network is not wanted any more: CNI plugin {plugin:?} of network {network:?} was killed"
    )]
    Cancelled {
        /// The plugin's type.
        plugin: String,
        /// The network.
        network: String,
    },

    /// An interface that plugins made is of a kind that cannot become a machine's.
    #[error(
        "interface {name} of network {network:?} is of kind {kind:?}, which cannot be given to a machine (veth, macvlan, ipvlan and tap can)"
    )]
    UnknownInterfaceKind {
        /// The interface.
        name: String,
        /// The network.
        network: String,
        /// What the kernel says it is.
        kind: String,
    },

    /// The plugins made nothing.
    #[error("the plugins of network {network:?} made no interface")]
    NoInterfaceMade {
        /// The network.
        network: String,
    },

    /// A network namespace cannot be made or entered.
    #[error("cannot {action} a network namespace")]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// With what lies behind it, for where it can only be written down.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Of two the one that leaves something to be done, else the first.
    pub(crate) fn graver(first: Option<Self>, second: Self) -> Option<Self> {
        match first {
            None | Some(Self::PluginGone { .. }) => Some(second),
            first => first,
        }
    }
}

/// What lacks, where the kernel's answer tells.
fn hint_firewall(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT) => {
            ": the kernel lacks a part of it (Linux 5.12; nf_tables with netdev, nft_nat, nft_masq, nft_fib_inet, nft_ct)"
        }
        Some(libc::EPERM) => ": it takes CAP_NET_ADMIN",
        _ => "",
    }
}
