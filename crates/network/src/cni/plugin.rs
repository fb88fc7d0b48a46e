// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starting a plugin (section 2 of the specification), with bounds on all that it does to us.

use std::env;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_subprocess::{Answer, Bounds, Cause, run};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{joined, plugin_type};
use crate::error::NetworkError;
use crate::name::shorten;
use crate::request::NetworkConfig;

/// A result larger than this is none.
const MAX_RESULT: usize = 1 << 20;

/// Of what a plugin says as its error, this much is kept.
const MAX_COMPLAINT: usize = 16 << 10;

/// Where plugins find `iptables` and the like if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The plugins of Debian's package, and how to come by them.
const PACKAGED: [&str; 18] = [
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];
const INSTALL: &str = ": install the package containernetworking-plugins";

/// What is asked of a plugin.
pub(super) struct Invocation<'a> {
    pub(super) command: &'static str,
    pub(super) id: &'a str,
    /// None when it is gone.
    pub(super) namespace: Option<&'a str>,
    pub(super) interface: &'a str,
    pub(super) network: &'a str,
    /// Once this is readable, nobody wants the plugin to go on.
    pub(super) cancel: Option<BorrowedFd<'a>>,
}

/// What a plugin prints when it fails.
#[derive(Deserialize)]
struct ErrorResult {
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Invocation<'_> {
    /// Runs it; gives what it prints. Only `ADD` has to print anything.
    pub(super) fn run(
        &self,
        config: &NetworkConfig,
        plugin: &Map<String, Value>,
        input: &Value,
    ) -> Result<Value, NetworkError> {
        let kind = plugin_type(plugin);
        let program = find(config, self.network, kind)?;
        let mut command = Command::new(&program);
        for (variable, _) in
            env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CNI_"))
        {
            command.env_remove(variable);
        }
        if env::var_os("PATH").is_none() {
            command.env("PATH", DEFAULT_PATH);
        }
        let paths: Vec<String> = config
            .cni_plugins
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        command
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.namespace.unwrap_or_default())
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", paths.join(":"));
        let bounds = Bounds {
            deadline: config.cni_deadline,
            stdout: MAX_RESULT,
            stderr: MAX_COMPLAINT,
            cancel: self.cancel,
        };
        let answer = run(command, input.to_string().as_bytes(), &bounds)
            .map_err(|failure| self.no_answer(kind, failure.cause))?;
        if !answer.status.success() {
            return Err(self.failed(kind, complaint(&answer)));
        }
        if self.command != "ADD" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.stdout).map_err(|error| {
            let said = shorten(String::from_utf8_lossy(&answer.stdout).trim());
            self.no_result(kind, format!("it is no JSON ({error}): {said:?}"))
        })
    }

    fn no_answer(&self, kind: &str, cause: Cause) -> NetworkError {
        match cause {
            Cause::Deadline(deadline) => NetworkError::PluginTimeout {
                plugin: kind.to_owned(),
                network: self.network.to_owned(),
                command: self.command,
                deadline,
            },
            Cause::TooLong(limit) => {
                self.no_result(kind, format!("it is longer than {limit} bytes"))
            }
            Cause::Cancelled => NetworkError::Cancelled {
                plugin: kind.to_owned(),
                network: self.network.to_owned(),
            },
            Cause::Start(source) => NetworkError::PluginStart {
                plugin: kind.to_owned(),
                network: self.network.to_owned(),
                source,
            },
            other => self.failed(kind, format!("it {other}")),
        }
    }

    fn failed(&self, kind: &str, reason: String) -> NetworkError {
        NetworkError::PluginFailed {
            plugin: kind.to_owned(),
            network: self.network.to_owned(),
            command: self.command,
            reason,
        }
    }

    fn no_result(&self, kind: &str, reason: String) -> NetworkError {
        NetworkError::PluginResult {
            plugin: kind.to_owned(),
            network: self.network.to_owned(),
            command: self.command,
            reason,
        }
    }
}

/// The program of a plugin of this kind.
pub(super) fn find(
    config: &NetworkConfig,
    network: &str,
    kind: &str,
) -> Result<PathBuf, NetworkError> {
    let directories = &config.cni_plugins;
    directories
        .iter()
        .map(|directory| directory.join(kind))
        .find(|path| is_program(path))
        .ok_or_else(|| {
            let would_help =
                PACKAGED.contains(&kind) || !directories.iter().any(|directory| directory.is_dir());
            NetworkError::PluginMissing {
                plugin: kind.to_owned(),
                network: network.to_owned(),
                directories: joined(directories),
                hint: if would_help { INSTALL } else { "" },
            }
        })
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Its own words, or else how it ended.
fn complaint(answer: &Answer) -> String {
    if let Ok(error) = serde_json::from_slice::<ErrorResult>(&answer.stdout) {
        let message = shorten(&error.msg);
        let details = if error.details.is_empty() {
            String::new()
        } else {
            format!("; {}", shorten(&error.details))
        };
        return format!("{message} (code {}{details})", error.code);
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let said = shorten(said.trim());
    if said.is_empty() {
        answer.status.to_string()
    } else {
        format!("{}: {said}", answer.status)
    }
}
