// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a spec makes sense, and whether this agent can honour it: all that can be told before anything is made.

use std::path::{Component, Path};

use coracle_agent_api::{AgentError, DISK_LINKS, ErrorKind};
use thiserror::Error;

use super::mount_options::{MountOptions, OptionError};
use super::{NamespaceKind, Process, Spec};
use crate::channel::DESCRIPTORS_MAX;

/// The largest numbers that the kernel has room for in a device's: 12 and 20 bits (`MINORBITS` of `linux/kdev_t.h`).
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// What is wrong with a spec.
#[derive(Debug, Error)]
pub enum SpecError {
    /// It is not JSON, or a field is unknown or has another type.
    #[error("the spec cannot be read: {0}")]
    Json(#[source] serde_json::Error),
    /// A field holds something that cannot be.
    #[error("{field} of the spec {problem}")]
    Invalid {
        /// The field's name.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field asks for something that the agent cannot do.
    #[error("{field} of the spec is not supported")]
    Unsupported {
        /// The field's name, with its value where that matters.
        field: String,
    },
    /// The options of a mount contradict each other.
    #[error("mount of {destination} in the spec: {problem}")]
    MountOptions {
        /// The mount's destination.
        destination: String,
        /// What is wrong with them.
        problem: OptionError,
    },
}

impl From<SpecError> for AgentError {
    fn from(error: SpecError) -> Self {
        let kind = match &error {
            SpecError::Unsupported { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidSpec,
        };
        Self::new(kind, error.to_string())
    }
}

fn invalid(field: &str, problem: impl Into<String>) -> SpecError {
    SpecError::Invalid {
        field: field.to_owned(),
        problem: problem.into(),
    }
}

fn unsupported(field: impl Into<String>) -> SpecError {
    SpecError::Unsupported {
        field: field.into(),
    }
}

impl Spec {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        self.check_root()?;
        self.process.check()?;
        self.check_namespaces()?;
        self.check_mounts()?;
        self.check_paths()?;
        self.check_devices()?;
        self.check_device_rules()?;
        self.check_sysctl()?;
        self.check_unified()?;
        self.check_rootfs_propagation()
    }

    fn check_root(&self) -> Result<(), SpecError> {
        if self.root.path.is_empty() {
            return Err(invalid("root.path", "is empty"));
        }
        no_nul("root.path", &self.root.path)
    }

    fn check_namespaces(&self) -> Result<(), SpecError> {
        for namespace in &self.linux.namespaces {
            if matches!(namespace.kind, NamespaceKind::User | NamespaceKind::Time) {
                let kind = format!("{:?}", namespace.kind).to_lowercase();
                return Err(unsupported(format!("linux.namespaces of type {kind}")));
            }
            if namespace.path.as_ref().is_some_and(|path| !path.is_empty()) {
                return Err(unsupported("linux.namespaces with a path"));
            }
        }
        // Without them a container would mount over the agent's files and be killed only in part.
        for required in [NamespaceKind::Mount, NamespaceKind::Pid] {
            if !self.has_namespace(required) {
                let kind = format!("{required:?}").to_lowercase();
                return Err(unsupported(format!(
                    "linux.namespaces without one of type {kind}"
                )));
            }
        }
        if !self.has_namespace(NamespaceKind::Uts)
            && (self.hostname.is_some() || self.domainname.is_some())
        {
            return Err(invalid(
                "hostname",
                "is set, and linux.namespaces has none of type uts",
            ));
        }
        Ok(())
    }

    fn check_mounts(&self) -> Result<(), SpecError> {
        for mount in &self.mounts {
            if !mount.destination.starts_with('/') {
                let problem = format!(
                    "has the destination `{}`, which is not absolute",
                    mount.destination
                );
                return Err(invalid("mounts", problem));
            }
            // What is mounted over the root would not be what the container enters.
            if !Path::new(&mount.destination)
                .components()
                .any(|component| matches!(component, Component::Normal(_)))
            {
                let problem = format!("has the destination `{}`, the root", mount.destination);
                return Err(invalid("mounts", problem));
            }
            no_nul("mounts", &mount.destination)?;
            no_nul("mounts", &mount.source)?;
            no_nul("mounts", &mount.kind)?;
            if mount.source.starts_with(DISK_LINKS) && mount.disk().is_none() {
                let problem = format!("has the source `{}`, which is not a disk", mount.source);
                return Err(invalid("mounts", problem));
            }
            MountOptions::parse(&mount.options).map_err(|problem| SpecError::MountOptions {
                destination: mount.destination.clone(),
                problem,
            })?;
        }
        let disks = self
            .mounts
            .iter()
            .filter(|mount| mount.is_of_disks_file_system())
            .count();
        if disks > DESCRIPTORS_MAX {
            let problem = format!("has {disks} file systems of disks: at most {DESCRIPTORS_MAX}");
            return Err(invalid("mounts", problem));
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<(), SpecError> {
        let masked = ("linux.maskedPaths", &self.linux.masked_paths);
        let readonly = ("linux.readonlyPaths", &self.linux.readonly_paths);
        for (field, paths) in [masked, readonly] {
            for path in paths {
                if !path.starts_with('/') {
                    return Err(invalid(
                        field,
                        format!("has `{path}`, which is not absolute"),
                    ));
                }
                no_nul(field, path)?;
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), SpecError> {
        for device in &self.linux.devices {
            if !device.path.starts_with('/') {
                let problem = format!("has `{}`, which is not absolute", device.path);
                return Err(invalid("linux.devices", problem));
            }
            no_nul("linux.devices", &device.path)?;
            is_id("linux.devices.uid", device.uid)?;
            is_id("linux.devices.gid", device.gid)?;
            if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
                let problem = format!("has {} of type `{}`", device.path, device.kind);
                return Err(invalid("linux.devices", problem));
            }
            // The kernel would cut a larger number off, and make a node of another device.
            for (which, number, max) in [
                ("major", device.major, MAJOR_MAX),
                ("minor", device.minor, MINOR_MAX),
            ] {
                if number > max {
                    let problem = format!(
                        "has {} of {which} number {number}, above {max}",
                        device.path
                    );
                    return Err(invalid("linux.devices", problem));
                }
            }
        }
        Ok(())
    }

    fn check_device_rules(&self) -> Result<(), SpecError> {
        for rule in &self.linux.resources.devices {
            let kind = rule.kind.as_deref().unwrap_or("a");
            if !matches!(kind, "a" | "b" | "c") {
                let problem = format!("has a rule of type `{kind}`");
                return Err(invalid("linux.resources.devices", problem));
            }
            let access = rule.access.as_deref().unwrap_or("rwm");
            if !access.chars().all(|access| "rwm".contains(access)) {
                let problem = format!("has a rule for the access `{access}`");
                return Err(invalid("linux.resources.devices", problem));
            }
        }
        Ok(())
    }

    fn check_sysctl(&self) -> Result<(), SpecError> {
        for (name, value) in &self.linux.sysctl {
            // It becomes a path below /proc/sys.
            if name.split(['.', '/']).any(str::is_empty) {
                return Err(invalid(
                    "linux.sysctl",
                    format!("has the parameter `{name}`"),
                ));
            }
            no_nul("linux.sysctl", name)?;
            no_nul("linux.sysctl", value)?;
        }
        Ok(())
    }

    fn check_unified(&self) -> Result<(), SpecError> {
        for name in self.linux.resources.unified.keys() {
            // It becomes a file's name in the container's cgroup.
            if name.contains(['/', '\0']) || !name.contains('.') || name.starts_with('.') {
                return Err(invalid(
                    "linux.resources.unified",
                    format!("has the file `{name}`"),
                ));
            }
        }
        Ok(())
    }

    fn check_rootfs_propagation(&self) -> Result<(), SpecError> {
        match self.linux.rootfs_propagation.as_deref() {
            // There is nothing in the guest that mounts could be received from, so a slave is private.
            None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(()),
            Some(other) => Err(unsupported(format!("linux.rootfsPropagation {other}"))),
        }
    }
}

impl Process {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if self.args.first().is_none_or(String::is_empty) {
            return Err(invalid("process.args", "names no command"));
        }
        for argument in &self.args {
            no_nul("process.args", argument)?;
        }
        for variable in &self.env {
            no_nul("process.env", variable)?;
        }
        if !self.cwd.starts_with('/') {
            let problem = format!("is `{}`, which is not absolute", self.cwd);
            return Err(invalid("process.cwd", problem));
        }
        no_nul("process.cwd", &self.cwd)?;
        is_id("process.user.uid", self.user.uid)?;
        is_id("process.user.gid", self.user.gid)?;
        for gid in &self.user.additional_gids {
            is_id("process.user.additionalGids", *gid)?;
        }
        for limit in &self.rlimits {
            if limit.soft > limit.hard {
                let problem = format!(
                    "has a soft limit of {} above its hard limit of {} for {:?}",
                    limit.soft, limit.hard, limit.resource
                );
                return Err(invalid("process.rlimits", problem));
            }
        }
        Ok(())
    }
}

fn no_nul(field: &str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        return Err(invalid(
            field,
            format!("has a NUL in `{}`", value.escape_default()),
        ));
    }
    Ok(())
}

/// To the kernel the largest number means "as it is": a process that was to become that user would stay root.
fn is_id(field: &str, id: u32) -> Result<(), SpecError> {
    if id == u32::MAX {
        return Err(invalid(field, format!("is {id}, which stands for no id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["true"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    /// The minimal spec with `value` at `pointer`.
    fn with(pointer: &str, value: Value) -> Vec<u8> {
        let mut spec = minimal();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[name] = value;
        spec.to_string().into_bytes()
    }

    #[test]
    fn minimal_spec_is_accepted() {
        let spec = Spec::parse(minimal().to_string().as_bytes()).unwrap();

        assert_eq!(spec.process.args, ["true"]);
        assert!(spec.has_namespace(NamespaceKind::Pid));
        assert!(!spec.has_namespace(NamespaceKind::Network));
    }

    #[test]
    fn fields_of_engines_are_read() {
        let process = json!({
            "args": ["sh", "-c", "id"],
            "cwd": "/srv",
            "env": ["PATH=/bin"],
            "user": {"uid": 1000, "gid": 100, "umask": 18, "additionalGids": [10, 20]},
            "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            "noNewPrivileges": true,
            "oomScoreAdj": -500,
        });

        let spec = Spec::parse(&with("/process", process)).unwrap();

        assert_eq!(spec.process.user.additional_gids, [10, 20]);
        assert_eq!(spec.process.user.umask, Some(0o22));
        assert_eq!(spec.process.rlimits[0].soft, 512);
        assert_eq!(spec.process.oom_score_adj, Some(-500));
        assert!(spec.process.no_new_privileges);
    }

    #[rstest]
    #[case::hooks("/hooks", json!({}), "unknown field `hooks`")]
    #[case::seccomp("/linux/seccomp", json!({}), "unknown field `seccomp`")]
    #[case::apparmor("/process/apparmorProfile", json!("x"), "unknown field `apparmorProfile`")]
    #[case::no_command("/process/args", json!([]), "process.args of the spec names no command")]
    #[case::empty_command("/process/args", json!([""]), "process.args of the spec names no command")]
    #[case::nul("/process/args", json!(["a\0b"]), "process.args of the spec has a NUL in `a\\u{0}b`")]
    #[case::cwd("/process/cwd", json!("srv"), "process.cwd of the spec is `srv`, which is not absolute")]
    #[case::user_without_an_id("/process/user", json!({"uid": u32::MAX}), "process.user.uid of the spec is 4294967295, which stands for no id")]
    #[case::group_without_an_id("/process/user", json!({"gid": u32::MAX}), "process.user.gid of the spec is 4294967295, which stands for no id")]
    #[case::further_group_without_an_id("/process/user", json!({"additionalGids": [0, u32::MAX]}), "process.user.additionalGids of the spec is 4294967295, which stands for no id")]
    #[case::device_without_an_owner("/linux/devices", json!([{"path": "/dev/x", "type": "c", "uid": u32::MAX}]), "linux.devices.uid of the spec is 4294967295, which stands for no id")]
    #[case::root("/root/path", json!(""), "root.path of the spec is empty")]
    #[case::hostname("/hostname", json!("pod"), "hostname of the spec is set, and linux.namespaces has none of type uts")]
    #[case::user_namespace("/linux/namespaces", json!([{"type": "user"}]), "linux.namespaces of type user of the spec is not supported")]
    #[case::joined_namespace("/linux/namespaces", json!([{"type": "ipc", "path": "/proc/1/ns/ipc"}]), "linux.namespaces with a path of the spec is not supported")]
    #[case::no_pid_namespace("/linux/namespaces", json!([{"type": "mount"}]), "linux.namespaces without one of type pid of the spec is not supported")]
    #[case::destination("/mounts", json!([{"destination": "tmp"}]), "mounts of the spec has the destination `tmp`, which is not absolute")]
    #[case::mount_on_root("/mounts", json!([{"destination": "/./.."}]), "mounts of the spec has the destination `/./..`, the root")]
    #[case::disk("/mounts", json!([{"destination": "/x", "type": "ext4", "source": "/dev/disk/by-id/../../vda"}]), "mounts of the spec has the source `/dev/disk/by-id/../../vda`, which is not a disk")]
    #[case::many_disks("/mounts", json!(vec![json!({"destination": "/x", "type": "ext4", "source": "/dev/disk/by-id/virtio-a"}); 33]), "mounts of the spec has 33 file systems of disks: at most 32")]
    #[case::masked("/linux/maskedPaths", json!(["proc"]), "linux.maskedPaths of the spec has `proc`, which is not absolute")]
    #[case::device("/linux/devices", json!([{"path": "/dev/x", "type": "z"}]), "linux.devices of the spec has /dev/x of type `z`")]
    #[case::device_of_no_major("/linux/devices", json!([{"path": "/dev/x", "type": "b", "major": 4104}]), "linux.devices of the spec has /dev/x of major number 4104, above 4095")]
    #[case::device_of_no_minor("/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 1_048_579}]), "linux.devices of the spec has /dev/x of minor number 1048579, above 1048575")]
    #[case::rule("/linux/resources", json!({"devices": [{"allow": true, "access": "rx"}]}), "linux.resources.devices of the spec has a rule for the access `rx`")]
    #[case::rule_for_no_major("/linux/resources", json!({"devices": [{"allow": true, "type": "b", "major": -2}]}), "linux.resources.devices has a rule for the major number -2")]
    #[case::rule_for_no_minor("/linux/resources", json!({"devices": [{"allow": true, "minor": 4_294_967_296_u64}]}), "linux.resources.devices has a rule for the minor number 4294967296")]
    #[case::rule_beyond_64_bits("/linux/resources", json!({"devices": [{"allow": true, "major": u64::MAX}]}), "linux.resources.devices has a rule for the major number 18446744073709551615")]
    #[case::sysctl("/linux/sysctl", json!({"net..x": "1"}), "linux.sysctl of the spec has the parameter `net..x`")]
    #[case::unified("/linux/resources", json!({"unified": {"../memory.max": "1"}}), "linux.resources.unified of the spec has the file `../memory.max`")]
    #[case::propagation("/linux/rootfsPropagation", json!("shared"), "linux.rootfsPropagation shared of the spec is not supported")]
    #[case::rlimit("/process/rlimits", json!([{"type": "RLIMIT_CORE", "hard": 1, "soft": 2}]), "process.rlimits of the spec has a soft limit of 2 above its hard limit of 1 for Core")]
    fn what_cannot_be_honoured_is_named(
        #[case] pointer: &str,
        #[case] value: Value,
        #[case] message: &str,
    ) {
        let error = Spec::parse(&with(pointer, value)).unwrap_err();

        assert!(error.to_string().contains(message), "{error}");
    }

    #[test]
    fn text_is_no_spec() {
        let error = AgentError::from(Spec::parse(b"hello").unwrap_err());

        assert_eq!(error.kind, ErrorKind::InvalidSpec);
        assert!(
            error
                .message
                .starts_with("the spec cannot be read: expected value")
        );
    }
}
