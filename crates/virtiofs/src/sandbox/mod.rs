// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a file server's process gives up before it reads the first request, in order.
//!
//! After [`enter`] the process sees the shared directory as its root and nothing else of the host, has a
//! file server's capabilities and no others, and may make only the system calls that `filter.rs` lists. Should a
//! guest take the process over, it has what it could reach through the file system anyway, and what the process
//! has open: see [`role::main`](crate::role::main) for that.
//!
//! One thing is up to the host. No device can be opened on the mounts that are there from the start, but a mount
//! that the host makes below the shared directory later appears with the flags that the host gave it. Without `nodev`
//! a process that was taken over can make a node of any of the host's devices there, and open it; [`confine`] is what to
//! do with such a mount first.
//!
//! A PID namespace is left to whoever starts the process, since to enter one takes a fork; of the calls
//! that name a process, the filter lets none through but that to its own threads.

mod filter;
mod mounts;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, getrlimit, pivot_root, setrlimit, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, capability_is_in_bounding_set,
    clear_ambient_capability_set, move_into_link_name_space, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, unshare_unsafe,
};
use thiserror::Error;

use crate::passthrough::SelfFds;

pub use mounts::confine;

/// The capabilities that stay, all of them over files alone.
pub const CAPABILITIES: CapabilitySet = CapabilitySet::empty()
    // The guest's root changes owners.
    .union(CapabilitySet::CHOWN)
    // The guest's kernel has checked permissions, with groups and capabilities that the host does not know.
    // It includes the rights of DAC_READ_SEARCH, but not `open_by_handle_at`, which would reach every file of a
    // file system of which one directory is shared.
    .union(CapabilitySet::DAC_OVERRIDE)
    // Modes, times and attributes of files that belong to others than the server.
    .union(CapabilitySet::FOWNER)
    // Set-user-id and set-group-id stay where the guest's root sets them, or writes.
    .union(CapabilitySet::FSETID)
    // To make files in the name of the guest's users.
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    // Device nodes and the whiteouts of overlays. That none can be opened is up to the mounts, see `become_root`.
    .union(CapabilitySet::MKNOD)
    // File capabilities, which images bring along.
    .union(CapabilitySet::SETFCAP);

/// A step into the sandbox that failed. The process must not go on without it.
#[derive(Debug, Error)]
#[error("cannot {step}")]
pub struct SandboxError {
    step: &'static str,
    source: io::Error,
}

/// What a process keeps from outside.
#[derive(Debug)]
pub struct Inside {
    /// The shared directory, now the root.
    pub root: OwnedFd,
    /// The way from a pinned inode to an open file.
    pub fds: SelfFds,
    /// How many descriptors the process may have.
    pub max_descriptors: u64,
}

/// Enters the sandbox around `directory`, and `network`, an empty network namespace, or one that it makes. To be
/// called while the process has one thread: threads that exist already would stay outside. Takes the capabilities of
/// root.
///
/// # Errors
/// The first step that failed; the process is then somewhere in between, and has to end.
pub fn enter(directory: OwnedFd, network: Option<OwnedFd>) -> Result<Inside, SandboxError> {
    // While /proc can be seen.
    let fds = SelfFds::detached().map_err(failed("open /proc/self/fd"))?;
    let max_descriptors = raise_limits()?;

    let own = enter_network(network)?;
    let root = become_root(directory, own)?;
    umask(Mode::empty());
    set_thread_groups(&[]).map_err(failed("give up supplementary groups"))?;
    drop_capabilities()?;
    set_no_new_privs(true).map_err(failed("rule out new privileges"))?;
    filter::apply().map_err(failed("filter system calls"))?;
    Ok(Inside {
        root,
        fds,
        max_descriptors,
    })
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |error| SandboxError {
        step,
        source: error.into(),
    }
}

/// As many descriptors as there may be, since each inode that the guest holds is one; files of any size;
/// and no core dump, in which the guest's memory would lie. Says how many descriptors.
fn raise_limits() -> Result<u64, SandboxError> {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .map_err(failed("read /proc/sys/fs/nr_open"))?;
    let descriptors = raise(Resource::Nofile, most.trim().parse().ok())
        .map_err(failed("raise the number of open files"))?;
    raise(Resource::Fsize, None).map_err(failed("lift the limit on the size of files"))?;
    setrlimit(Resource::Core, limit(Some(0))).map_err(failed("rule out core dumps"))?;
    Ok(descriptors.unwrap_or(u64::MAX))
}

/// Raises a limit to `wanted` or, without the capability for that, to the most that this process may have.
fn raise(resource: Resource, wanted: Option<u64>) -> rustix::io::Result<Option<u64>> {
    if setrlimit(resource, limit(wanted)).is_ok() {
        return Ok(wanted);
    }
    let Rlimit { maximum, .. } = getrlimit(resource);
    setrlimit(resource, limit(maximum))?;
    Ok(maximum)
}

/// A limit that the process cannot change later.
const fn limit(most: Option<u64>) -> Rlimit {
    Rlimit {
        current: most,
        maximum: most,
    }
}

/// Enters the network namespace, or says which flag makes one.
fn enter_network(network: Option<OwnedFd>) -> Result<UnshareFlags, SandboxError> {
    let Some(network) = network else {
        return Ok(UnshareFlags::NEWNET);
    };
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(failed("enter its network namespace"))?;
    Ok(UnshareFlags::empty())
}

/// Makes `directory` the root of namespaces of its own, `network` among them if it says so. They hold no other mount of
/// the host but those below it, and on these no device can be opened. What the host mounts there later appears here,
/// with the host's flags; nothing done here appears on the host.
fn become_root(directory: OwnedFd, network: UnshareFlags) -> Result<OwnedFd, SandboxError> {
    // From here on the namespace's copy of the directory is ".", without a path that could be exchanged.
    fchdir(&directory).map_err(failed("enter the shared directory"))?;
    drop(directory);
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | network;
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(namespaces) }.map_err(failed("make namespaces"))?;
    mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("cut mounts off from the host"))?;

    // Only a mount can be a root, and only one that lies somewhere.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root =
        open_tree(CWD, c".", flags).map_err(failed("make a mount of the shared directory"))?;
    // This process may make any device: it must not open one. Mounts of the host are still to appear.
    confine(
        &root,
        MountAttrFlags::empty(),
        MountPropagationFlags::empty(),
    )
    .map_err(failed("rule out devices in the shared directory"))?;
    move_mount(
        &root,
        c"",
        CWD,
        c".",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed("mount the shared directory"))?;
    fchdir(&root).map_err(failed("enter the shared directory's mount"))?;
    // The old root comes to lie on the new one, and is taken off it.
    pivot_root(c".", c".").map_err(failed("make the shared directory the root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(failed("leave the host's mounts"))?;

    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, Mode::empty()).map_err(failed("open the shared directory"))
}

fn drop_capabilities() -> Result<(), SandboxError> {
    clear_ambient_capability_set().map_err(failed("clear ambient capabilities"))?;
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        // The kernel knows fewer than there are bits.
        let known = capability_is_in_bounding_set(capability).unwrap_or(false);
        if known && !CAPABILITIES.contains(capability) {
            remove_capability_from_bounding_set(capability)
                .map_err(failed("bound capabilities"))?;
        }
    }
    let kept = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).map_err(failed("drop capabilities"))
}
