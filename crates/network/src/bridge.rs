// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks that somebody else keeps: ports of bridges, and taps by name.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use coracle_subprocess::{Bounds, Cause, run};

use crate::attachment::{Interface, Route, default_route};
use crate::error::NetworkError;
use crate::netlink::Socket;
use crate::netlink::link::{Link, LinkChange};
use crate::request::Addressing;
use crate::state::OvsPort;
use crate::{identity, sysctl, tap};

/// How the names of taps start that are ports of bridges.
const PREFIX: &str = "corabr";

/// Names that are tried before giving up.
const NAME_ATTEMPTS: u32 = 16;

/// The database may wait for its daemon; `ovs-vsctl` is told to wait less than this.
const OVS_DEADLINE: Duration = Duration::from_secs(15);
const OVS_TIMEOUT: &str = "--timeout=10";

/// Which software forwards a bridge's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BridgeKind {
    Linux,
    OpenVSwitch,
}

/// The bridge of this name.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<(Link, BridgeKind), NetworkError> {
    let Some(link) = link_of(socket, name)? else {
        return Err(NetworkError::NoInterface {
            kind: "bridge",
            name: name.to_owned(),
        });
    };
    match link.kind.as_str() {
        "bridge" => Ok((link, BridgeKind::Linux)),
        // With the user-space datapath a bridge is a tap of the daemon's.
        "openvswitch" | "tun" if is_ovs_bridge(name, &link.kind)? => {
            Ok((link, BridgeKind::OpenVSwitch))
        }
        kind => Err(NetworkError::NotABridge {
            name: name.to_owned(),
            kind: kind.to_owned(),
        }),
    }
}

fn is_ovs_bridge(name: &str, kind: &str) -> Result<bool, NetworkError> {
    match ovs(&["br-exists", name]) {
        Ok(()) => Ok(true),
        // Any tap may be no bridge; the kernel's own datapath is Open vSwitch's alone.
        Err(_) if kind == "tun" => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a tap for a port of a bridge, and its name.
pub(crate) fn make_tap(id: &str, interface: usize) -> Result<(OwnedFd, String), NetworkError> {
    make_named(PREFIX, id, interface)
}

/// Makes a tap under the first of its names that is free.
pub(crate) fn make_named(
    prefix: &str,
    id: &str,
    interface: usize,
) -> Result<(OwnedFd, String), NetworkError> {
    let mut attempt = 0;
    loop {
        let name = identity::interface_name(prefix, id, interface, attempt);
        match tap::create(&name) {
            Err(NetworkError::TapCreate { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) && attempt < NAME_ATTEMPTS =>
            {
                attempt += 1;
            }
            result => return result.map(|fd| (fd, name)),
        }
    }
}

/// Makes a tap a port of its bridge. An Open vSwitch port must be remembered before.
pub(crate) fn join(
    socket: &mut Socket,
    bridge: &Link,
    kind: BridgeKind,
    tap: &str,
    id: &str,
    interface: usize,
) -> Result<(), NetworkError> {
    let link = link_of(socket, tap)?.ok_or_else(|| NetworkError::NoInterface {
        kind: "tap",
        name: tap.to_owned(),
    })?;
    // The host itself does not speak on a port.
    if sysctl::has_ipv6() {
        sysctl::set(format!("ipv6/conf/{tap}/disable_ipv6"), "1")?;
    }
    let failed = |source| NetworkError::Netlink {
        action: format!("make {tap} a port of bridge {}", bridge.name),
        source,
    };
    let mtu = LinkChange::Mtu(bridge.mtu);
    let mac = LinkChange::Mac(identity::port_mac(id, interface));
    socket
        .change_link(link.index, &[mtu, mac])
        .map_err(failed)?;
    match kind {
        BridgeKind::Linux => socket
            .change_link(link.index, &[LinkChange::Controller(bridge.index)])
            .map_err(failed)?,
        BridgeKind::OpenVSwitch => ovs(&["--may-exist", "add-port", &bridge.name, tap])?,
    }
    socket
        .change_link(link.index, &[LinkChange::Up])
        .map_err(failed)
}

/// Removes a port from Open vSwitch's database, which forgets nothing by itself.
pub(crate) fn remove_ovs_port(port: &OvsPort) -> Result<(), NetworkError> {
    ovs(&["--if-exists", "del-port", &port.bridge, &port.port])
}

fn ovs(arguments: &[&str]) -> Result<(), NetworkError> {
    const MAX_ANSWER: usize = 16 << 10;
    let mut command = Command::new("ovs-vsctl");
    command.arg(OVS_TIMEOUT).args(arguments);
    let shown = format!("ovs-vsctl {}", arguments.join(" "));
    let failed = |reason: String| NetworkError::ToolFailed {
        command: shown.clone(),
        reason,
    };
    let bounds = Bounds {
        deadline: OVS_DEADLINE,
        stdout: MAX_ANSWER,
        stderr: MAX_ANSWER,
        cancel: None,
    };
    match run(command, b"", &bounds) {
        Ok(answer) if answer.status.success() => Ok(()),
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.stderr);
            Err(failed(format!("{}; {}", answer.status, said.trim())))
        }
        Err(failure) => Err(match failure.cause {
            Cause::Start(error) if error.kind() == ErrorKind::NotFound => {
                NetworkError::ToolMissing {
                    program: "ovs-vsctl",
                    package: "openvswitch-switch",
                }
            }
            cause => failed(format!("it {cause}")),
        }),
    }
}

/// Opens the tap of this name, which exists.
pub(crate) fn open_tap(socket: &mut Socket, name: &str) -> Result<(OwnedFd, Link), NetworkError> {
    let link = link_of(socket, name)?.ok_or_else(|| NetworkError::NoInterface {
        kind: "tap",
        name: name.to_owned(),
    })?;
    let tap = tap::open(&link)?;
    Ok((tap, link))
}

/// The guest's side of a network that only the user knows.
pub(crate) fn guest_side(
    tap: OwnedFd,
    index: usize,
    id: &str,
    host_mtu: u32,
    addressing: &Addressing,
) -> (Interface, Vec<Route>) {
    let name = format!("eth{index}");
    let interface = Interface {
        tap,
        name: name.clone(),
        mac: addressing
            .mac
            .unwrap_or_else(|| identity::guest_mac(id, index)),
        mtu: addressing
            .mtu
            .unwrap_or_else(|| u16::try_from(host_mtu).unwrap_or(u16::MAX)),
        addresses: addressing.addresses.clone(),
    };
    let routes = addressing
        .gateways
        .iter()
        .map(|gateway| {
            let is_within =
                |address: &IpAddr| addressing.addresses.iter().any(|own| own.contains(address));
            default_route(*gateway, &name, index, !is_within(gateway))
        })
        .collect();
    (interface, routes)
}

fn link_of(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetworkError> {
    socket.link(name).map_err(|source| NetworkError::Netlink {
        action: format!("look for interface {name}"),
        source,
    })
}
