// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a request to taps, addresses and routes, and back to nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::cni;
use crate::dns::{self, Dns};
use crate::error::NetworkError;
use crate::firewall::{self, OwnTable, PREFIX};
use crate::identity::interface_name;
use crate::mac::MacAddress;
use crate::namespace::Namespace;
use crate::netlink::Socket;
use crate::network::Network;
use crate::port::PortMapping;
use crate::publish::{self, Held, Redirection};
use crate::request::{Addressing, NetworkConfig, Request};
use crate::state::{CommonLock, Machine, OvsPort, Record};
use crate::{bridge, forwarding, host_nat};

/// Default routes of further interfaces come after those of the ones before: this much a place.
const METRIC_STEP: u32 = 100;

/// How long a killed machine's process may take to be gone, and how often that is looked at.
const DYING: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// Interfaces of a killed machine that are waited for. One that has more leaves the rest to the next sweep.
const DYING_TAPS: usize = 8;

/// One network interface of a machine.
#[derive(Debug)]
pub struct Interface {
    /// The tap's descriptor, for the virtual network device: Ethernet frames behind a `virtio_net_hdr`, not blocking.
    pub tap: OwnedFd,
    /// What the guest is to call it: `eth0`, ...
    pub name: String,
    /// The guest's Ethernet address.
    pub mac: MacAddress,
    /// The guest's MTU in bytes.
    pub mtu: u16,
    /// The guest's IP addresses, with the prefix that is on its link.
    pub addresses: Vec<IpNet>,
}

/// One of the guest's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; a prefix of length 0 is the default.
    pub destination: IpNet,
    /// Through whom; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// Through which of the guest's interfaces.
    pub interface: String,
    /// The gateway is on the link though no address of the guest says so.
    pub on_link: bool,
    /// Lower goes first; none is the kernel's default.
    pub metric: Option<u32>,
    /// Which of the guest's addresses packets are sent from.
    pub source: Option<IpAddr>,
}

/// Somebody on a link whose Ethernet address the guest need not ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The IP address.
    pub address: IpAddr,
    /// The Ethernet address.
    pub mac: MacAddress,
    /// Through which of the guest's interfaces.
    pub interface: String,
}

/// A machine's network, while it is there.
///
/// Dropping it removes the network, as [`Attachment::detach`] does, but can only log what fails. It belongs to the process
/// that made it: that process holds the published ports, and when it ends, however it ends, the kernel takes them back.
#[derive(Debug)]
pub struct Attachment {
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    dns: Dns,
    held: Held,
    redirections: Vec<Redirection>,
    /// Of each routed tap.
    guards: Vec<OwnTable>,
    namespace: Option<Namespace>,
    /// Indices of interfaces in the namespace that were given to the machine.
    joined_links: Vec<u32>,
    record: Record,
    /// None when all is removed.
    machine: Option<Machine>,
    id: String,
    config: NetworkConfig,
}

/// Makes a machine's network. What an earlier machine of the same id left behind is removed first.
///
/// # Errors
///
/// What could not be made; then nothing of it is left, but for [`NetworkError::Cancelled`].
pub fn attach(request: &Request<'_>) -> Result<Attachment, NetworkError> {
    request.check()?;
    let machine = Machine::take(request.config, request.id)?;
    let left = machine.read()?;
    match remove_recorded(request.config, request.id, &left, None) {
        // What follows overwrites the record of it.
        Err(error @ NetworkError::PluginGone { .. }) => tracing::warn!("{error}"),
        removed => removed?,
    }
    let mut attachment = Attachment {
        interfaces: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
        dns: Dns::default(),
        held: Held::default(),
        redirections: Vec::new(),
        guards: Vec::new(),
        namespace: None,
        joined_links: Vec::new(),
        record: Record::default(),
        machine: Some(machine),
        id: request.id.to_owned(),
        config: request.config.clone(),
    };
    match attachment.make(request) {
        Ok(()) => Ok(attachment),
        Err(error) => {
            // Dropping it removes what there is so far. That takes plugins as well, and whoever cancels waits for none.
            if matches!(error, NetworkError::Cancelled { .. }) {
                attachment.machine = None;
            }
            Err(error)
        }
    }
}

impl Attachment {
    /// The machine's interfaces, in the order of the request's networks.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The guest's routes, in the order in which they can be made.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Neighbours that the guest is told of.
    #[must_use]
    pub fn neighbours(&self) -> &[Neighbour] {
        &self.neighbours
    }

    /// What the guest's resolver is told.
    #[must_use]
    pub fn dns(&self) -> &Dns {
        &self.dns
    }

    /// The published ports, with those of the host that were chosen for it.
    #[must_use]
    pub fn ports(&self) -> &[PortMapping] {
        &self.held.mappings
    }

    /// Asks the plugins of CNI networks whether all is still as they made it (CNI `CHECK`).
    ///
    /// # Errors
    ///
    /// What the first of them complains of.
    pub fn check(&self) -> Result<(), NetworkError> {
        let Some(namespace) = &self.namespace else {
            return Ok(());
        };
        self.record
            .cni
            .iter()
            .try_for_each(|network| cni::check(&self.config, &self.id, network, &namespace.path()))
    }

    /// Removes the network. The machine's process should have ended before: a tap stays for as long as anybody has it open.
    ///
    /// # Errors
    ///
    /// What could not be removed. It stays remembered: [`crate::remove_leftovers`] tries again.
    pub fn detach(mut self) -> Result<(), NetworkError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), NetworkError> {
        let Some(machine) = self.machine.take() else {
            return Ok(());
        };
        self.redirections.clear();
        self.held = Held::default();
        let path = self.namespace.as_ref().map(Namespace::path);
        let removed = remove_recorded(&self.config, &self.id, &self.record, path.as_deref());
        self.interfaces.clear();
        // No earlier than the taps.
        self.guards.clear();
        self.namespace = None;
        let common = match CommonLock::take(&self.config) {
            Ok(common) => common,
            Err(error) => return Err(removed.err().unwrap_or(error)),
        };
        let settled = match removed {
            Ok(()) => machine.forget(&common),
            Err(error) => {
                drop(machine);
                Err(error)
            }
        };
        settled.and(remove_shared_locked(&self.config, &common))
    }

    fn make(&mut self, request: &Request<'_>) -> Result<(), NetworkError> {
        self.held = publish::hold(request.ports, request.config)?;
        self.record.ports.clone_from(&self.held.mappings);
        self.remember()?;
        let mut is_published = request.ports.is_empty();
        let mut network_dns = None;
        for (index, network) in request.networks.iter().enumerate() {
            let first = Addressing::default();
            let addressing = if index == 0 {
                request.addressing
            } else {
                &first
            };
            match network {
                Network::None => {}
                Network::HostNat => {
                    let common = CommonLock::take(request.config)?;
                    let plan = host_nat::Plan {
                        id: request.id,
                        index,
                        addressing,
                        publishes: !is_published,
                        config: request.config,
                    };
                    let made = host_nat::attach(&plan, &common)?;
                    self.interfaces.push(made.interface);
                    self.guards.push(made.guard);
                    self.routes.extend(made.routes);
                    if !is_published {
                        check_families(&self.held.mappings, made.ipv4, made.ipv6)?;
                        let redirection = publish::redirect(
                            &made.tap,
                            &self.held.mappings,
                            made.ipv4,
                            made.ipv6,
                        )?;
                        self.redirections.push(redirection);
                        is_published = true;
                    }
                }
                Network::Bridge(name) => self.join_bridge(request, name, index, addressing)?,
                Network::Tap(name) => {
                    let mut socket = route_socket()?;
                    let (tap, link) = bridge::open_tap(&mut socket, name)?;
                    let (interface, routes) =
                        bridge::guest_side(tap, index, request.id, link.mtu, addressing);
                    self.interfaces.push(interface);
                    self.routes.extend(routes);
                }
                Network::Named(name) => {
                    let namespace = match self.namespace.take() {
                        Some(namespace) => namespace,
                        None => Namespace::new()?,
                    };
                    let path = namespace.path();
                    self.namespace = Some(namespace);
                    let arguments = cni::Arguments {
                        ports: if is_published {
                            &[]
                        } else {
                            &self.held.mappings
                        },
                        addressing,
                    };
                    let (planned, publishes) = cni::plan(request.config, name, index, &arguments)?;
                    // Remembered before it is made: a plugin may be at work when this process is killed.
                    self.record.cni.push(planned);
                    self.remember()?;
                    is_published |= publishes;
                    self.add_named(request, &path, index)?;
                    if let Some(added) = self.record.cni.last() {
                        let dns = added.dns();
                        if network_dns.is_none() && !dns.nameservers.is_empty() {
                            network_dns = Some(dns);
                        }
                    }
                }
            }
        }
        if !is_published {
            return Err(NetworkError::CannotPublish {
                mapping: self
                    .held
                    .mappings
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                reason: "none of the machine's networks publishes ports; host-nat does, and CNI networks with the \
                         capability portMappings",
            });
        }
        self.dns = dns::decide(request.config, network_dns, request.dns);
        Ok(())
    }

    fn add_named(
        &mut self,
        request: &Request<'_>,
        path: &str,
        index: usize,
    ) -> Result<(), NetworkError> {
        // Both were put there by the caller.
        let (Some(network), Some(namespace)) = (self.record.cni.last_mut(), &self.namespace) else {
            return Ok(());
        };
        let added = cni::add(request.config, request.id, network, path, request.cancel);
        if let Err(NetworkError::PluginStart { plugin, .. }) = &added
            && network.begins_with(plugin)
        {
            // None was run: there is nothing to undo.
            self.record.cni.pop();
        }
        added?;
        let Some(network) = self.record.cni.last() else {
            return Ok(());
        };
        let joined = cni::join(namespace, network, index, &mut self.joined_links)?;
        self.interfaces.extend(joined.interfaces);
        self.routes.extend(joined.routes);
        self.neighbours.extend(joined.neighbours);
        self.remember()
    }

    fn join_bridge(
        &mut self,
        request: &Request<'_>,
        name: &str,
        index: usize,
        addressing: &Addressing,
    ) -> Result<(), NetworkError> {
        let mut socket = route_socket()?;
        let (bridge, kind) = bridge::find(&mut socket, name)?;
        let (tap, tap_name) = bridge::make_tap(request.id, index)?;
        if kind == bridge::BridgeKind::OpenVSwitch {
            self.record.ovs.push(OvsPort {
                bridge: name.to_owned(),
                port: tap_name.clone(),
            });
            self.remember()?;
        }
        bridge::join(&mut socket, &bridge, kind, &tap_name, request.id, index)?;
        let (interface, routes) =
            bridge::guest_side(tap, index, request.id, bridge.mtu, addressing);
        self.interfaces.push(interface);
        self.routes.extend(routes);
        Ok(())
    }

    fn remember(&self) -> Result<(), NetworkError> {
        self.machine
            .as_ref()
            .map_or(Ok(()), |machine| machine.write(&self.record))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            // It stays remembered: whoever tries next is told.
            tracing::info!("network of {}: {}", self.id, error.with_causes());
        }
    }
}

/// The route to everything else through an interface of this place.
pub(crate) fn default_route(
    gateway: IpAddr,
    interface: &str,
    index: usize,
    on_link: bool,
) -> Route {
    let anywhere = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Route {
        // A length of 0 is always valid.
        destination: IpNet::new_assert(anywhere, 0),
        gateway: Some(gateway),
        interface: interface.to_owned(),
        on_link,
        metric: metric(index),
        source: None,
    }
}

/// Where the networks do not say which of several default routes goes first, their order does.
pub(crate) fn metric(index: usize) -> Option<u32> {
    (index > 0).then(|| {
        u32::try_from(index)
            .unwrap_or(u32::MAX)
            .saturating_mul(METRIC_STEP)
    })
}

/// What becomes of what cannot be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    Kept,
    Forgotten,
}

/// Removes what a killed process left, and forgets it. Gives what could not be removed and was forgotten all the same.
pub(crate) fn remove(
    config: &NetworkConfig,
    id: &str,
    machine: Machine,
    rest: Rest,
) -> Result<Option<NetworkError>, NetworkError> {
    let record = machine.read()?;
    let removed = remove_recorded(config, id, &record, None);
    wait_for_taps(id)?;
    let common = CommonLock::take(config)?;
    let settled = match removed {
        Err(error) if rest == Rest::Kept => Err(machine.keep(id, record, error)),
        removed => machine.forget(&common).map(|()| removed.err()),
    };
    let shared = remove_shared_locked(config, &common);
    match settled? {
        None => shared.map(|()| None),
        // It is heard of now or never; what is shared is tried again by the next.
        forgotten => Ok(forgotten),
    }
}

/// Waits a while for a killed machine's taps to go: they go with the machine's process, which may still be dying, and what
/// all machines share stays while there is one.
fn wait_for_taps(id: &str) -> Result<(), NetworkError> {
    let own: Vec<_> = (0..DYING_TAPS)
        .map(|interface| interface_name(PREFIX, id, interface, 0))
        .collect();
    let deadline = Instant::now() + DYING;
    let mut socket = route_socket()?;
    loop {
        let in_use = host_nat::taps(&mut socket)?;
        if Instant::now() >= deadline || !own.iter().any(|name| in_use.contains(name)) {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}

/// Removes what all routed machines share, if there is none.
pub(crate) fn remove_shared(config: &NetworkConfig) -> Result<(), NetworkError> {
    remove_shared_locked(config, &CommonLock::take(config)?)
}

fn remove_shared_locked(config: &NetworkConfig, common: &CommonLock) -> Result<(), NetworkError> {
    let failed = |source| firewall::refused("look for what machines share", source);
    let mut filter = match Socket::netfilter() {
        Ok(filter) => filter,
        // A kernel without packet filters has nothing to remove.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let is_present = match firewall::is_present(&mut filter) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
        result => result.map_err(failed)?,
    };
    if !host_nat::taps(&mut route_socket()?)?.is_empty() {
        return Ok(());
    }
    forwarding::turn_off(config, &mut filter, common)?;
    if is_present {
        firewall::remove(&mut filter)?;
    }
    Ok(())
}

/// Removes what the kernel does not by itself: all of it, whatever fails.
fn remove_recorded(
    config: &NetworkConfig,
    id: &str,
    record: &Record,
    namespace: Option<&str>,
) -> Result<(), NetworkError> {
    let mut first_error = None;
    for network in record.cni.iter().rev() {
        if let Err(error) = cni::delete(config, id, network, namespace) {
            first_error = NetworkError::graver(first_error, error);
        }
    }
    for port in &record.ovs {
        if let Err(error) = bridge::remove_ovs_port(port) {
            first_error = NetworkError::graver(first_error, error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn route_socket() -> Result<Socket, NetworkError> {
    Socket::route().map_err(|source: io::Error| NetworkError::Netlink {
        action: "open a socket".to_owned(),
        source,
    })
}

/// Refuses what needs no attempt.
impl Request<'_> {
    /// Looks for what no host can honour: [`attach`] does so first, and changes nothing where it fails.
    ///
    /// # Errors
    ///
    /// What cannot be honoured.
    pub fn check(&self) -> Result<(), NetworkError> {
        for network in self.networks {
            match network {
                Network::Bridge(name) | Network::Tap(name) => crate::name::check_interface(name)?,
                Network::Named(name) => crate::name::check_network(name)?,
                Network::None | Network::HostNat => {}
            }
        }
        publish::check(self.ports)?;
        self.dns.check()?;
        check_addressing(
            self.networks.first().unwrap_or(&Network::None),
            self.addressing,
        )
    }
}

/// What a user chooses is honoured or refused, never passed over.
fn check_addressing(network: &Network, addressing: &Addressing) -> Result<(), NetworkError> {
    let refuse = |what, hint| {
        Err(NetworkError::NotForUsers {
            network: network.to_string(),
            what,
            hint,
        })
    };
    if let Some(mac) = addressing.mac
        && !mac.is_unicast()
    {
        return Err(NetworkError::BadMacAddress {
            text: mac.to_string(),
        });
    }
    match network {
        Network::Bridge(_) | Network::Tap(_) => Ok(()),
        Network::None if *addressing != Addressing::default() => refuse("address", ""),
        Network::None => Ok(()),
        _ if !addressing.gateways.is_empty() => refuse("gateway", ": it has its own"),
        Network::Named(_) if addressing.mtu.is_some() => {
            refuse("MTU", ": say it in its configuration")
        }
        Network::Named(_) | Network::HostNat => Ok(()),
    }
}

/// A port of one family needs a guest that has an address of it.
fn check_families(
    mappings: &[PortMapping],
    ipv4: Option<IpAddr>,
    ipv6: Option<IpAddr>,
) -> Result<(), NetworkError> {
    let unreachable = mappings.iter().find(|mapping| match mapping.host_address {
        Some(IpAddr::V4(_)) => ipv4.is_none(),
        Some(IpAddr::V6(_)) => ipv6.is_none(),
        None => ipv4.is_none() && ipv6.is_none(),
    });
    unreachable.map_or(Ok(()), |mapping| {
        Err(NetworkError::CannotPublish {
            mapping: mapping.to_string(),
            reason: "the machine has no address of that family",
        })
    })
}
