// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The OCI runtime configuration, as far as the agent honours it.
//!
//! These are types of the agent's own because those of `oci-spec` would double its size. They differ in one more way:
//! a field that they do not have is refused by its name, so that nothing of a spec is dropped in silence. What a host
//! settles before the guest sees it (hooks, host cgroup paths, labels) does not get here.

use std::collections::BTreeMap;

use serde::Deserialize;

mod check;
pub mod mount_options;
mod process;
mod resources;

pub use check::SpecError;
pub use process::{Capabilities, ConsoleSize, Process, Rlimit, User};
pub use resources::{Cpu, DeviceRule, Memory, Pids, Resources};

/// A container's configuration: the root of `config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Version of the specification; not looked at, since fields are refused one by one.
    pub oci_version: String,
    /// The root file system.
    pub root: Root,
    /// The process to run.
    pub process: Process,
    /// Host name in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Mounts, made in this order.
    pub mounts: Vec<Mount>,
    /// What only Linux has.
    pub linux: Linux,
    /// For others than the agent.
    pub annotations: BTreeMap<String, String>,
}

/// A container's root file system.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Root {
    /// Its directory, relative to the share unless absolute.
    pub path: String,
    /// Nothing of it can be written, except what is mounted upon it.
    pub readonly: bool,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mount {
    /// Where, in the container.
    pub destination: String,
    /// Type of the file system; `bind` or empty for a bind mount.
    #[serde(rename = "type")]
    pub kind: String,
    /// What to mount; the source of a bind mount is relative to the share unless absolute.
    pub source: String,
    /// Options as for `mount(8)`.
    pub options: Vec<String>,
}

impl Mount {
    /// Whether it shows something that exists already.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        let by_option = |option: &String| option == "bind" || option == "rbind";
        matches!(self.kind.as_str(), "" | "bind") || self.options.iter().any(by_option)
    }
}

/// The part of a configuration that is Linux's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    /// Namespaces that the container has of its own.
    pub namespaces: Vec<Namespace>,
    /// Paths that read as empty.
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// The container's cgroup on the host; the guest's is named by the container's id.
    pub cgroups_path: Option<String>,
    /// Kernel parameters, `net.ipv4.ip_forward` for example.
    pub sysctl: BTreeMap<String, String>,
    /// Devices beside the default ones.
    pub devices: Vec<Device>,
    /// Propagation of the root mount.
    pub rootfs_propagation: Option<String>,
}

/// A namespace that a container has of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Namespace {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// An existing one to enter.
    pub path: Option<String>,
}

/// The kinds of namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // As the specification names them.
pub enum NamespaceKind {
    #[default]
    Mount,
    Pid,
    Uts,
    Ipc,
    Network,
    Cgroup,
    User,
    Time,
}

/// A device of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its path in the container.
    pub path: String,
    /// `c` or `u` for a character device, `b` for a block device, `p` for a FIFO.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions; 0666 if absent.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Spec {
    /// Reads a spec and checks that it can be honoured.
    ///
    /// # Errors
    ///
    /// [`SpecError`] names the field that is wrong or not supported.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_slice(json).map_err(SpecError::Json)?;
        spec.check()?;
        Ok(spec)
    }

    /// Whether the container has a namespace of this kind of its own.
    #[must_use]
    pub fn has_namespace(&self, kind: NamespaceKind) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == kind)
    }
}
