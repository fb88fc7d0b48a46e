// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What confines the container: namespaces, devices, hidden and read-only files of the kernel.

use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources,
};

/// The network is the virtual machine's, which no other pod shares.
const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Cgroup,
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Devices that may be used, all of characters: major and minor number, `None` for any.
const DEVICES: [(i64, Option<i64>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // pts/*
];

pub(super) fn linux() -> Linux {
    let namespaces = NAMESPACES.map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    });
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.into()))
        .set_resources(Some(resources))
        .set_masked_paths(Some(MASKED.map(str::to_owned).into()))
        .set_readonly_paths(Some(READ_ONLY.map(str::to_owned).into()));
    linux
}

/// Nothing but the standard devices can be used. Nodes of all can be made, as package managers do,
/// without being of use: not even the guest's own disks can be opened through one.
fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let nodes = [LinuxDeviceType::C, LinuxDeviceType::B]
        .map(|kind| rule(true, Some(kind), None, None, "m"));
    let devices = DEVICES
        .map(|(major, minor)| rule(true, Some(LinuxDeviceType::C), Some(major), minor, "rwm"));
    std::iter::once(rule(false, None, None, None, "rwm"))
        .chain(nodes)
        .chain(devices)
        .collect()
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_denied_before_some_are_allowed() {
        let rules = device_rules();

        assert_eq!(
            (rules[0].allow(), rules[0].access().as_deref()),
            (false, Some("rwm"))
        );
        assert!(rules[1..].iter().all(LinuxDeviceCgroup::allow));
    }

    #[test]
    fn disks_cannot_be_opened() {
        let rules = device_rules();

        let mut blocks = rules[1..]
            .iter()
            .filter(|rule| rule.typ() == Some(LinuxDeviceType::B));
        assert!(blocks.all(|rule| rule.access().as_deref() == Some("m")));
    }
}
