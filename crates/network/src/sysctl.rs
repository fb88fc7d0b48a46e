// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel settings below /proc/sys/net, of the network namespace that the calling thread is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::NetworkError;

const ROOT: &str = "/proc/sys/net";

/// Whether this kernel has IPv6, and nobody turned it off.
pub(crate) fn has_ipv6() -> bool {
    matches!(read("ipv6/conf/all/disable_ipv6"), Ok(value) if value == "0")
}

/// Whether this host forwards packets.
pub(crate) fn forwards(is_ipv4: bool) -> Result<bool, NetworkError> {
    read(forwarding(is_ipv4)).map(|value| value != "0")
}

pub(crate) fn disable_forwarding(is_ipv4: bool) -> Result<(), NetworkError> {
    set(forwarding(is_ipv4), "0")
}

fn forwarding(is_ipv4: bool) -> &'static str {
    if is_ipv4 {
        "ipv4/ip_forward"
    } else {
        "ipv6/conf/all/forwarding"
    }
}

/// Lets this host forward packets. For IPv6 that would end its listening to routers' advertisements, by which it may have
/// its own address and route: interfaces that listen go on listening.
pub(crate) fn enable_forwarding(is_ipv4: bool) -> Result<(), NetworkError> {
    if is_ipv4 {
        return set(forwarding(is_ipv4), "1");
    }
    let interfaces = fs::read_dir(path("ipv6/conf")).map_err(|source| NetworkError::Sysctl {
        path: path("ipv6/conf"),
        action: "read",
        source,
    })?;
    for interface in interfaces.flatten() {
        // `all` has no effect on interfaces that exist, and of those to come, which `default` is for, nobody knows what they
        // lead to.
        let name = interface.file_name();
        if name == "all" || name == "default" {
            continue;
        }
        let setting = Path::new("ipv6/conf").join(&name).join("accept_ra");
        // An interface may be gone by now.
        if let Ok(value) = read(&setting)
            && value == "1"
            && let Err(error) = set(&setting, "2")
        {
            tracing::warn!("{error}: that interface listens to no router from now on");
        }
    }
    set(forwarding(is_ipv4), "1")
}

/// Sets it unless it is set: /proc/sys may be read-only where somebody prepared it.
pub(crate) fn set(setting: impl AsRef<Path>, value: &str) -> Result<(), NetworkError> {
    if read(setting.as_ref()).is_ok_and(|present| present == value) {
        return Ok(());
    }
    let path = path(setting);
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl {
        path,
        action: "set",
        source,
    })
}

fn read(setting: impl AsRef<Path>) -> Result<String, NetworkError> {
    let path = path(setting);
    read_trimmed(&path).map_err(|source| NetworkError::Sysctl {
        path,
        action: "read",
        source,
    })
}

fn read_trimmed(path: &Path) -> io::Result<String> {
    let mut text = fs::read_to_string(path)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

fn path(setting: impl AsRef<Path>) -> PathBuf {
    Path::new(ROOT).join(setting)
}
