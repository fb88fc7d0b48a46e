// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules that hold for a container: its spec's, and what every container may use.

use crate::spec::DeviceRule;

// Types and kinds of access, as `struct bpf_cgroup_dev_ctx` of linux/bpf.h has them.
pub(super) const TYPE_BLOCK: i32 = 1;
pub(super) const TYPE_CHARACTER: i32 = 2;
pub(super) const ACCESS_MAKE: i32 = 1;
pub(super) const ACCESS_READ: i32 = 2;
pub(super) const ACCESS_WRITE: i32 = 4;
pub(super) const ACCESS_ALL: i32 = ACCESS_MAKE | ACCESS_READ | ACCESS_WRITE;

/// A rule in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    /// `None` for both types.
    pub(super) kind: Option<i32>,
    /// `None` for all numbers.
    pub(super) major: Option<u32>,
    /// `None` for all numbers.
    pub(super) minor: Option<u32>,
    pub(super) access: i32,
}

/// Devices that every container may use.
pub(super) const DEFAULTS: [Rule; 11] = [
    // Any node may be made; what matters is which can be opened.
    default(TYPE_CHARACTER, None, None, ACCESS_MAKE),
    default(TYPE_BLOCK, None, None, ACCESS_MAKE),
    default(TYPE_CHARACTER, Some(1), Some(3), ACCESS_ALL), // null
    default(TYPE_CHARACTER, Some(1), Some(5), ACCESS_ALL), // zero
    default(TYPE_CHARACTER, Some(1), Some(7), ACCESS_ALL), // full
    default(TYPE_CHARACTER, Some(1), Some(8), ACCESS_ALL), // random
    default(TYPE_CHARACTER, Some(1), Some(9), ACCESS_ALL), // urandom
    default(TYPE_CHARACTER, Some(5), Some(0), ACCESS_ALL), // tty
    default(TYPE_CHARACTER, Some(5), Some(1), ACCESS_ALL), // console
    default(TYPE_CHARACTER, Some(5), Some(2), ACCESS_ALL), // ptmx
    default(TYPE_CHARACTER, Some(136), None, ACCESS_ALL),  // pts/*
];

const fn default(kind: i32, major: Option<u32>, minor: Option<u32>, access: i32) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

impl Rule {
    /// Whether it decides on every access to every device.
    pub(super) fn fits_everything(&self) -> bool {
        self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == ACCESS_ALL
    }
}

impl From<&DeviceRule> for Rule {
    fn from(rule: &DeviceRule) -> Self {
        Self {
            allow: rule.allow,
            kind: match rule.kind.as_deref() {
                Some("b") => Some(TYPE_BLOCK),
                Some("c") => Some(TYPE_CHARACTER),
                _ => None,
            },
            major: rule.major,
            minor: rule.minor,
            access: access(rule.access.as_deref().unwrap_or("rwm")),
        }
    }
}

/// The rules that hold, the deciding ones last. A rule for everything, an engine's "deny all", undoes the rules before
/// it, but not the defaults.
pub(super) fn all(rules: &[DeviceRule]) -> Vec<Rule> {
    let mut particular: Vec<_> = rules.iter().map(Rule::from).collect();
    let everything = particular
        .iter()
        .rposition(Rule::fits_everything)
        .and_then(|position| particular.drain(..=position).next_back());
    everything
        .into_iter()
        .chain(DEFAULTS)
        .chain(particular)
        .collect()
}

fn access(letters: &str) -> i32 {
    letters.chars().fold(0, |access, letter| {
        access
            | match letter {
                'm' => ACCESS_MAKE,
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                _ => 0,
            }
    })
}
