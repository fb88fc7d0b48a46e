// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether this host forwards packets: turned on for the first machine where it was off, and off again after the last.
//!
//! `STATE/forwarding` remembers that it was this program who turned it on, and what there was besides.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::firewall::{self, PREFIX};
use crate::netlink::Socket;
use crate::netlink::link::Link;
use crate::request::NetworkConfig;
use crate::state::{CommonLock, is_any_attached, replace_file};
use crate::sysctl;

/// What was changed.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// Of which host since its last boot, and of which of its network namespaces: settings do not outlive them.
    place: String,
    /// In which families: true is IPv4.
    families: Vec<bool>,
    /// The interfaces that there were.
    interfaces: Vec<String>,
    /// What others had that concerns forwarding.
    forwarders: Vec<String>,
}

/// Lets this host forward for guests, in these families (true is IPv4), and for nobody else if it did not before.
pub(crate) fn turn_on(
    config: &NetworkConfig,
    filter: &mut Socket,
    links: &[Link],
    families: &[bool],
    _common: &CommonLock,
) -> Result<(), NetworkError> {
    let mut change = read(config).unwrap_or_default();
    let off = off(families)?;
    if !off.is_empty() {
        // What was there is remembered from the first time: since then others may have come to rely on forwarding.
        if change.families.is_empty() {
            change.interfaces = links
                .iter()
                .filter(|link| !link.is_loopback && !link.name.starts_with(PREFIX))
                .map(|link| link.name.clone())
                .collect();
            change.forwarders = forwarders(filter)?;
        }
        change.place = place();
        change.families.extend(&off);
        change.families.sort_unstable();
        change.families.dedup();
        // Each step before the one that would have to be undone without it.
        let path = path(config);
        let bytes = serde_json::to_vec(&change).map_err(io::Error::from);
        bytes
            .and_then(|bytes| replace_file(&path, &bytes, false))
            .map_err(|source| NetworkError::State {
                path,
                action: "write it",
                source,
            })?;
    }
    if !change.families.is_empty() {
        // Each time: somebody may have flushed it.
        firewall::keep_strangers_out(filter, &change.families, &change.interfaces)?;
    }
    off.into_iter().try_for_each(sysctl::enable_forwarding)
}

/// After the last machine: all is as it was. While others have come to rely on it nothing changes, and strangers stay out.
pub(crate) fn turn_off(
    config: &NetworkConfig,
    filter: &mut Socket,
    common: &CommonLock,
) -> Result<(), NetworkError> {
    let Some(change) = read(config) else {
        return Ok(());
    };
    // Some networks of machines that are left need it too.
    if is_any_attached(config, common)? {
        return Ok(());
    }
    let newcomer = forwarders(filter)?
        .into_iter()
        .find(|name| !change.forwarders.contains(name));
    if let Some(name) = newcomer {
        tracing::info!("this host goes on forwarding packets, for others: {name}");
        return Ok(());
    }
    change
        .families
        .into_iter()
        .try_for_each(sysctl::disable_forwarding)?;
    firewall::let_strangers_in(filter)?;
    let path = path(config);
    fs::remove_file(&path).map_err(|source| NetworkError::State {
        path,
        action: "remove it",
        source,
    })
}

/// Those of the families in which this host does not forward.
fn off(families: &[bool]) -> Result<Vec<bool>, NetworkError> {
    let mut off = Vec::new();
    for is_ipv4 in families {
        if !sysctl::forwards(*is_ipv4)? {
            off.push(*is_ipv4);
        }
    }
    Ok(off)
}

fn forwarders(filter: &mut Socket) -> Result<Vec<String>, NetworkError> {
    firewall::forwarders(filter).map_err(|source| firewall::refused("list chains", source))
}

fn path(config: &NetworkConfig) -> PathBuf {
    config.state.join("forwarding")
}

/// What was changed here and is still so. A file that says nothing of here, or nothing at all, is of the past.
fn read(config: &NetworkConfig) -> Option<Change> {
    let bytes = fs::read(path(config)).ok()?;
    let change: Change = serde_json::from_slice(&bytes).ok()?;
    (change.place == place()).then_some(change)
}

fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim_end(), namespace.display())
}
