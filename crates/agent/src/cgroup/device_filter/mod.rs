// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which devices a container may use: a small eBPF program on its cgroup, the only way that cgroup v2 has.
//!
//! A container that may make nodes could otherwise make one for any device that the guest's kernel knows. The program
//! tries the rules from the last to the first, and the first that fits decides; a device that none fits is denied.
//!
//! [`rules`] says which rules hold, [`program`] what they are in eBPF, and [`kernel`] hands that over.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::spec::DeviceRule;

mod kernel;
mod program;
mod rules;
#[cfg(test)]
mod tests;

/// Puts a filter on the cgroup at `path` that lets its processes use what every container may, changed by `rules`.
///
/// # Errors
///
/// The kernel has no eBPF for cgroups.
pub(super) fn attach(path: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let program = kernel::load(&program::compile(&rules::all(rules)))?;
    kernel::attach(&cgroup, &program)
}
