// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `linux.resources` object of a spec.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Limits of a container. Negative numbers stand for "no limit".
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// Processors.
    pub cpu: Cpu,
    /// Processes.
    pub pids: Pids,
    /// Which devices may be used; the last rule that fits decides.
    pub devices: Vec<DeviceRule>,
    /// Files of the cgroup and what to write to them.
    pub unified: BTreeMap<String, String>,
}

/// Limits of memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// Hard limit.
    pub limit: Option<i64>,
    /// What the kernel tries not to reclaim.
    pub reservation: Option<i64>,
    /// Limit of memory and swap together.
    pub swap: Option<i64>,
    /// Whether `limit` is refused if more is in use; a new container uses none.
    pub check_before_update: Option<bool>,
}

/// Limits of processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpu {
    /// Weight relative to others, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds in each period.
    pub quota: Option<i64>,
    /// Length of a period in microseconds.
    pub period: Option<u64>,
    /// Microseconds beyond the quota that may be saved up.
    pub burst: Option<u64>,
    /// Processors to run on.
    pub cpus: Option<String>,
    /// Memory nodes to use.
    pub mems: Option<String>,
    /// 1: runs only when nothing else does.
    pub idle: Option<i64>,
}

/// Limit of processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pids {
    /// How many; absent, zero or negative for no limit.
    pub limit: Option<i64>,
}

/// Whether devices may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `c`, `b` or, as when absent, `a` for both.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number; absent or negative for all.
    pub major: Option<i64>,
    /// Minor number; absent or negative for all.
    pub minor: Option<i64>,
    /// Of `r`, `w` and `m` (make a node); absent for all three.
    pub access: Option<String>,
}
