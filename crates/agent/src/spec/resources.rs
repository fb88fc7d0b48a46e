// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `linux.resources` object of a spec.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

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
    /// Major number; absent, or -1 in the spec, for all.
    #[serde(deserialize_with = "major")]
    pub major: Option<u32>,
    /// Minor number; absent, or -1 in the spec, for all.
    #[serde(deserialize_with = "minor")]
    pub minor: Option<u32>,
    /// Of `r`, `w` and `m` (make a node); absent for all three.
    pub access: Option<String>,
}

fn major<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    device_number("major", deserializer)
}

fn minor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    device_number("minor", deserializer)
}

/// A number that no device has is refused: a rule that allows it would be read as one that allows all.
fn device_number<'de, D: Deserializer<'de>>(
    which: &str,
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    // Wide enough to be named whatever it is.
    let number = match Option::<i128>::deserialize(deserializer)? {
        None | Some(-1) => return Ok(None),
        Some(number) => number,
    };
    u32::try_from(number).map(Some).map_err(|_| {
        D::Error::custom(format!(
            "linux.resources.devices has a rule for the {which} number {number}; -1, for all, and 0 to {} are accepted",
            u32::MAX
        ))
    })
}
