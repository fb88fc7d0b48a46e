// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `process` object of a spec.

use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Deserializer};

use super::SpecError;

/// The process that a container runs.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Standard streams are a terminal.
    pub terminal: bool,
    /// Size of that terminal.
    pub console_size: Option<ConsoleSize>,
    /// Who runs it.
    pub user: User,
    /// Command and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute in the container.
    pub cwd: String,
    /// Capabilities; without them the process has none.
    pub capabilities: Capabilities,
    /// Limits of the process.
    pub rlimits: Vec<Rlimit>,
    /// The process cannot gain privileges by executing a program.
    pub no_new_privileges: bool,
    /// How readily the kernel kills it when memory runs out.
    pub oom_score_adj: Option<i32>,
}

impl Process {
    /// Reads the `process` object of a further process of a container and checks that it can be honoured.
    ///
    /// # Errors
    ///
    /// [`SpecError`] names the field that is wrong or not supported.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let process: Self = serde_json::from_slice(json).map_err(SpecError::Json)?;
        process.check()?;
        Ok(process)
    }
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Who runs a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permissions that new files do not get.
    pub umask: Option<u32>,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// The user's name, which Linux has no use for.
    pub username: Option<String>,
}

/// The five capability sets of a process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// What it can ever gain.
    #[serde(deserialize_with = "capability_set")]
    pub bounding: CapabilitySet,
    /// What it has.
    #[serde(deserialize_with = "capability_set")]
    pub effective: CapabilitySet,
    /// What it passes on to programs that have it as inheritable.
    #[serde(deserialize_with = "capability_set")]
    pub inheritable: CapabilitySet,
    /// What it can give itself.
    #[serde(deserialize_with = "capability_set")]
    pub permitted: CapabilitySet,
    /// What it passes on to all programs.
    #[serde(deserialize_with = "capability_set")]
    pub ambient: CapabilitySet,
}

impl Default for Capabilities {
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self {
            bounding: none,
            effective: none,
            inheritable: none,
            permitted: none,
            ambient: none,
        }
    }
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Of what.
    #[serde(rename = "type", deserialize_with = "resource")]
    pub resource: Resource,
    /// What the process may raise `soft` to; 2^64-1 is no limit.
    pub hard: u64,
    /// The limit; 2^64-1 is none.
    pub soft: u64,
}

/// Every capability of Linux 6.1, in the order of the numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capability_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CapabilitySet, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let number = name
            .strip_prefix("CAP_")
            .and_then(|name| CAPABILITIES.iter().position(|known| *known == name))
            .ok_or_else(|| serde::de::Error::custom(format!("there is no capability {name}")))?;
        Ok(set | CapabilitySet::from_bits_retain(1 << number))
    })
}

fn resource<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Resource, D::Error> {
    const RESOURCES: [(&str, Resource); 16] = [
        ("AS", Resource::As),
        ("CORE", Resource::Core),
        ("CPU", Resource::Cpu),
        ("DATA", Resource::Data),
        ("FSIZE", Resource::Fsize),
        ("LOCKS", Resource::Locks),
        ("MEMLOCK", Resource::Memlock),
        ("MSGQUEUE", Resource::Msgqueue),
        ("NICE", Resource::Nice),
        ("NOFILE", Resource::Nofile),
        ("NPROC", Resource::Nproc),
        ("RSS", Resource::Rss),
        ("RTPRIO", Resource::Rtprio),
        ("RTTIME", Resource::Rttime),
        ("SIGPENDING", Resource::Sigpending),
        ("STACK", Resource::Stack),
    ];
    let name = String::deserialize(deserializer)?;
    name.strip_prefix("RLIMIT_")
        .and_then(|name| RESOURCES.iter().find(|(known, _)| *known == name))
        .map(|(_, resource)| *resource)
        .ok_or_else(|| serde::de::Error::custom(format!("there is no limit {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        let sets: Capabilities = serde_json::from_str(
            r#"{"bounding": ["CAP_CHOWN", "CAP_MKNOD"], "ambient": ["CAP_CHECKPOINT_RESTORE"]}"#,
        )
        .unwrap();

        assert_eq!(sets.bounding, CapabilitySet::CHOWN | CapabilitySet::MKNOD);
        assert_eq!(sets.ambient, CapabilitySet::CHECKPOINT_RESTORE);
        assert_eq!(sets.effective, CapabilitySet::empty());
    }

    #[test]
    fn unknown_capability_is_named() {
        let error =
            serde_json::from_str::<Capabilities>(r#"{"bounding": ["CAP_FLY"]}"#).unwrap_err();

        assert!(
            error
                .to_string()
                .starts_with("there is no capability CAP_FLY"),
            "{error}"
        );
    }

    #[test]
    fn unknown_limit_is_named() {
        let json = r#"{"type": "RLIMIT_LUCK", "hard": 1, "soft": 1}"#;

        let error = serde_json::from_str::<Rlimit>(json).unwrap_err();

        assert!(
            error
                .to_string()
                .starts_with("there is no limit RLIMIT_LUCK")
        );
    }
}
