// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tree that the guest sees, of what the plan says.

use anyhow::Result;
use coracle_agent_api::SHARE_MODULES;
use coracle_oci::plan::SandboxPlan;

use super::mounts::{self, Written};
use super::tree;
use crate::container::RunDirectory;
use crate::guest_files::GuestFiles;

/// Builds the tree that the guest sees: mount points on a mount that nobody can write to, and what is mounted there.
pub fn make(
    plan: &SandboxPlan,
    written: Written,
    directory: &RunDirectory,
    guest: &GuestFiles,
) -> Result<()> {
    mounts::enter_namespace()?;
    let rootfs = &plan.rootfs;
    mounts::make_point(&rootfs.lower, &rootfs.mount_point)?;
    for volume in &plan.volumes {
        mounts::make_point(&volume.source, &volume.mount_point)?;
    }
    let modules = guest.modules();
    let modules_point = directory.share().join(SHARE_MODULES);
    if let Some(modules) = &modules {
        mounts::make_point(modules, &modules_point)?;
    }
    mounts::seal(&directory.share())?;
    mounts::overlay(
        &rootfs.lower,
        &rootfs.upper,
        &rootfs.work,
        &rootfs.mount_point,
        written,
    )?;
    if let Some(process) = plan.spec.process() {
        tree::make_directory(&rootfs.mount_point, process.cwd(), "the working directory")?;
    }
    for volume in &plan.volumes {
        mounts::bind(&volume.source, volume.read_only, &volume.mount_point)?;
    }
    modules.map_or(Ok(()), |modules| {
        mounts::bind(&modules, true, &modules_point)
    })
}
