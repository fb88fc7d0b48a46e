// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The root file system of a container: attached where nobody else sees it, and entered when it is complete.

use std::path::Path;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};

use super::in_root::{Root, file_type};
use super::{failed, failure, mounts};
use crate::spec;

/// Attaches a copy of the mount of the root file system over itself: a root must be a mount point.
pub(super) fn attach(bundle: &Path, root: &spec::Root) -> Result<Root, AgentError> {
    // What is mounted from here on is the container's alone.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .map_err(|error| failed("cannot make the mounts private", error))?;
    let context = |step: &str| {
        let what = format!("cannot {step} the root file system {}", root.path);
        move |error: io::Errno| failure(ErrorKind::Mount, what, error)
    };
    let source = mounts::open_source(bundle, &root.path).map_err(context("open"))?;
    if file_type(&source).map_err(context("inspect"))? != FileType::Directory {
        return Err(context("use")(io::Errno::NOTDIR));
    }
    let source_fd = std::os::fd::AsFd::as_fd(&source);
    let tree = mounts::clone(source_fd).map_err(context("clone"))?;
    mounts::attach(&tree, &source).map_err(context("attach"))?;
    Ok(Root::new(tree))
}

/// Makes the root read-only, but not what is mounted in it.
pub(super) fn make_readonly(root: &Root) -> Result<(), AgentError> {
    mounts::set_attributes(
        root.directory(),
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountAttrFlags::empty(),
        false,
    )
    .map_err(|error| failed("cannot make the root file system read-only", error))
}

/// Makes `root` the root of this process and lets go of the old one.
pub(super) fn enter(root: Root) -> Result<(), AgentError> {
    pivot(&root).map_err(|error| failed("cannot enter the root file system", error))
}

fn pivot(root: &Root) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    rustix::process::fchdir(root.directory())?;
    // The old root ends up on top of the new one, where no directory needs to be made for it.
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(&old)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}
