// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths that a container may not write, and paths that it may not even read.

use std::os::fd::AsFd;
use std::path::Path;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::FileType;
use rustix::io;
use rustix::mount::MountAttrFlags;

use super::agent_files::AgentFiles;
use super::in_root::{Root, file_type};
use super::{failure, mounts};

/// Makes each of `paths` that exists read-only, with all that is mounted below it.
pub(super) fn make_readonly(root: &Root, paths: &[String]) -> Result<(), AgentError> {
    each(root, paths, "make read-only", |place| {
        let copy = mounts::clone(place.as_fd())?;
        mounts::set_attributes(
            &copy,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountAttrFlags::empty(),
            true,
        )?;
        mounts::attach(&copy, place)
    })
}

/// Hides each of `paths` that exists: a directory by an empty one, anything else by `/dev/null`.
pub(super) fn mask(root: &Root, agent: &AgentFiles, paths: &[String]) -> Result<(), AgentError> {
    each(root, paths, "mask", |place| {
        let cover = match file_type(place)? {
            FileType::Directory => mounts::empty_directory()?,
            _ => agent.null()?,
        };
        mounts::attach(&cover, place)
    })
}

fn each(
    root: &Root,
    paths: &[String],
    action: &str,
    act: impl Fn(&std::os::fd::OwnedFd) -> io::Result<()>,
) -> Result<(), AgentError> {
    for path in paths {
        let result = match root.open(Path::new(path)) {
            // Kernels differ in what they have below /proc and /sys.
            Err(io::Errno::NOENT | io::Errno::NOTDIR) => continue,
            Err(error) => Err(error),
            Ok(place) => act(&place),
        };
        result
            .map_err(|error| failure(ErrorKind::Mount, format!("cannot {action} {path}"), error))?;
    }
    Ok(())
}
