// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM process gives up before a guest runs in it: the host's files, network, names, capabilities and every
//! descriptor that it has no use for. With the filters of its threads it is all that stands between a broken device
//! and the host.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move,
    mount_remount, unmount,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, chdir, chroot, getrlimit, pivot_root,
    set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
    set_capabilities, set_no_new_privs, unshare_unsafe,
};
use thiserror::Error;

/// A directory that every host with `/dev/kvm` has: the empty root is mounted over it, in a mount namespace of our own.
const MOUNT_POINT: &str = "/dev";
/// Descriptors a VMM may have open: its devices and a few hundred vsock connections.
const MAX_DESCRIPTORS: u64 = 4096;

/// What a jailed process still sees of the host's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// Nothing: an empty directory that cannot be written.
    Empty,
    /// This directory, without devices, programs or set-user-ID files.
    Directory(PathBuf),
}

/// A jail for the calling process.
#[derive(Debug)]
pub struct Jail<'fd> {
    root: Root,
    network: Option<BorrowedFd<'fd>>,
    keep: Vec<BorrowedFd<'fd>>,
}

/// A step into the jail that failed. The process must not go on: it may be half inside.
#[derive(Debug, Error)]
#[error("the VMM cannot {action}")]
pub struct JailError {
    /// The step.
    pub action: String,
    /// The kernel's reason.
    pub source: io::Error,
}

fn failed_to(action: impl Into<String>) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError {
        action: action.into(),
        source: errno.into(),
    }
}

impl<'fd> Jail<'fd> {
    /// A jail with this root.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            root,
            network: None,
            keep: Vec::new(),
        }
    }

    /// Moves into this network namespace, which must be empty, instead of making one.
    #[must_use]
    pub fn in_network(mut self, network: Option<BorrowedFd<'fd>>) -> Self {
        self.network = network;
        self.keep.extend(network);
        self
    }

    /// Keeps these descriptors open, besides the three standard streams.
    #[must_use]
    pub fn keeping(mut self, descriptors: impl IntoIterator<Item = BorrowedFd<'fd>>) -> Self {
        self.keep.extend(descriptors);
        self
    }

    /// Puts the calling process, which must have one thread only, into the jail. There is no way back.
    ///
    /// # Errors
    ///
    /// [`JailError`] names the step that failed.
    ///
    /// # Safety
    ///
    /// All descriptors that are not kept are closed: nothing may use one of them afterwards.
    pub unsafe fn enter(self) -> Result<(), JailError> {
        // SAFETY: the caller gives the other descriptors up.
        unsafe { close_others(&self.keep) }?;
        leave_namespaces(self.network)?;
        change_root(&self.root)?;
        limit_resources()?;
        give_up_privileges()
    }
}

/// Closes everything but the standard streams and what is kept.
///
/// # Safety
///
/// Nothing may use one of the closed descriptors afterwards.
unsafe fn close_others(keep: &[BorrowedFd<'_>]) -> Result<(), JailError> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    for (first, last) in gaps(&kept) {
        // SAFETY: the caller gives these descriptors up.
        if unsafe { libc::close_range(first, last, 0) } != 0 {
            return Err(JailError {
                action: format!("close the descriptors {first} to {last}"),
                source: io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}

/// The ranges, first and last, of descriptor numbers from 3 on that are not in `kept`, which is sorted.
fn gaps(kept: &[RawFd]) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut next = 3;
    for kept in kept.iter().filter_map(|kept| u32::try_from(*kept).ok()) {
        if kept > next {
            gaps.push((next, kept - 1));
        }
        next = next.max(kept.saturating_add(1));
    }
    gaps.push((next, u32::MAX));
    gaps
}

/// Mounts, network (and with it abstract Unix sockets), System V IPC and host name apart from the host's.
fn leave_namespaces(network: Option<BorrowedFd<'_>>) -> Result<(), JailError> {
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match network {
        Some(network) => move_into_link_name_space(network, Some(LinkNameSpaceType::Network))
            .map_err(failed_to("enter its network namespace"))?,
        None => namespaces |= UnshareFlags::NEWNET,
    }
    // SAFETY: none of the flags unshares the table of descriptors.
    unsafe { unshare_unsafe(namespaces) }.map_err(failed_to("leave the host's namespaces"))?;
    // Nothing that is mounted from now on reaches the host.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed_to("make its mounts private"))
}

fn change_root(root: &Root) -> Result<(), JailError> {
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let new_root = match root {
        Root::Empty => {
            mount(
                "coracle",
                MOUNT_POINT,
                "tmpfs",
                harmless | MountFlags::RDONLY,
                None,
            )
            .map_err(failed_to("mount an empty root"))?;
            Path::new(MOUNT_POINT)
        }
        Root::Directory(path) => {
            let failed = |what: &str| failed_to(format!("{what} {} as its root", path.display()));
            mount_bind(path, path).map_err(failed("mount"))?;
            mount_remount(path, MountFlags::BIND | harmless, "").map_err(failed("restrict"))?;
            path
        }
    };
    chdir(new_root).map_err(failed_to("enter its root"))?;
    match pivot_root(".", ".") {
        // The old root lies over the new one now.
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(failed_to("leave the host's root"))?,
        // The initial RAM file system cannot be pivoted away from, only be covered.
        Err(Errno::INVAL) => {
            mount_move(".", "/").map_err(failed_to("cover the host's root"))?;
            chroot(".").map_err(failed_to("change its root"))?;
        }
        Err(errno) => return Err(failed_to("change its root")(errno)),
    }
    chdir("/").map_err(failed_to("enter its root"))
}

fn limit_resources() -> Result<(), JailError> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let descriptors = hard.map_or(MAX_DESCRIPTORS, |hard| hard.min(MAX_DESCRIPTORS));
    // A core dump would hold the guest's memory.
    for (resource, limit) in [(Resource::Core, 0), (Resource::Nofile, descriptors)] {
        let limits = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limits).map_err(failed_to(format!("limit {resource:?} to {limit}")))?;
    }
    Ok(())
}

/// No new privileges by any program, no capabilities, and no other process that reads our memory.
fn give_up_privileges() -> Result<(), JailError> {
    set_no_new_privs(true).map_err(failed_to("give up new privileges"))?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(failed_to("give up its capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed_to("keep other processes from its memory"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing_kept(&[], &[(3, u32::MAX)])]
    #[case::standard_streams_are_kept_anyway(&[0, 2], &[(3, u32::MAX)])]
    #[case::first_kept(&[3], &[(4, u32::MAX)])]
    #[case::neighbours(&[5, 6], &[(3, 4), (7, u32::MAX)])]
    #[case::twice(&[4, 4], &[(3, 3), (5, u32::MAX)])]
    #[case::spread(&[3, 9, 12], &[(4, 8), (10, 11), (13, u32::MAX)])]
    fn gaps_are_what_is_not_kept(#[case] kept: &[RawFd], #[case] expected: &[(u32, u32)]) {
        assert_eq!(gaps(kept), expected);
    }
}
