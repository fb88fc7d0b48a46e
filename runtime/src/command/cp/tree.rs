// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container's files, as the host has them: its root with its volumes where the container sees them.
//!
//! They are mounted in a mount namespace of this process's own, a copy of the one of the container's run if it runs. So
//! the host sees none of it, and it goes with this process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_oci::plan::{SandboxPlan, SharedVolume};
use coracle_oci::store::{Lease, Store};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, openat, openat2};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::guest_only::{Covers, GuestOnly};
use super::place::Direction;
use super::root::Root;
use crate::container::{Found, State, remove_tree};
use crate::log;
use crate::run::mounts::{Written, bind_at, enter_namespace, overlay, overlay_to_read};

/// A container's files.
pub struct Tree {
    /// Gone once they are unmounted.
    root: Option<Root>,
    guest_only: GuestOnly,
    /// What was mounted and made for a container that has ended.
    mounted: Option<Mounted>,
}

/// What to clear up.
struct Mounted {
    point: PathBuf,
    work: Option<PathBuf>,
    /// Of the container, so that it is not removed, and of what it wrote, so that one alone writes.
    _locks: [File; 2],
    /// Of what it was made from, if that is an image of the store.
    _lease: Option<Lease>,
}

impl Tree {
    /// Mounts a container's files. From here on paths of the host lead elsewhere: what is needed of it is opened before.
    ///
    /// To be called while the process has one thread: it changes its mount namespace.
    pub fn open(store: &Path, found: &mut Found, direction: Direction) -> Result<Self> {
        let name = &found.record.name;
        if let State::Damaged { reason, .. } = &found.state {
            bail!("it is not known where the files of container {name} are: {reason}");
        }
        let plan = found.record.plan.clone();
        let plan: SandboxPlan = plan
            .and_then(|plan| serde_json::from_value(plan).ok())
            .with_context(|| format!("container {name} has no files yet"))?;
        match found.state {
            State::Starting { .. } => bail!("container {name} is only starting"),
            State::Running { runner, .. } => Self::of_running(found, &plan, runner),
            State::Exited { .. } | State::Lost | State::Damaged { .. } => {
                Self::of_ended(store, found, &plan, direction)
            }
        }
    }

    /// Where paths in the container are looked up.
    pub fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("the container's files are gone")
    }

    /// What of it only the guest has.
    pub fn guest_only(&self) -> &GuestOnly {
        &self.guest_only
    }

    /// Refuses a path to what only the guest has, there or not. The link that it may end with is meant itself unless it
    /// is followed.
    pub fn require_in_reach(&self, path: &Path, follow: bool, direction: Direction) -> Result<()> {
        let root = self.root()?;
        let found = match follow {
            true => root.nearest(path),
            false => match root.find(path, false) {
                Ok(None) => root.nearest(path),
                found => found,
            },
        };
        match found {
            Ok(Some(entry)) => self.guest_only.refuse(&entry, path, direction),
            // What cannot be looked at is told of when it is used.
            _ => Ok(()),
        }
    }

    fn of_running(found: &mut Found, plan: &SandboxPlan, runner: u32) -> Result<Self> {
        let what = format!("cannot reach the files of container {}", found.record.name);
        let namespace =
            File::open(format!("/proc/{runner}/ns/mnt")).with_context(|| what.clone())?;
        // If it still runs, that was its process.
        found.look_again();
        if !matches!(found.state, State::Running { .. }) {
            bail!("container {} has just ended", found.record.name);
        }
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .with_context(|| what.clone())?;
        enter_namespace()?;
        let root = open_root(&plan.rootfs.mount_point).with_context(|| what)?;
        let covers = put_mounts(plan, &root, |volume| place(&volume.mount_point))?;
        Ok(Self {
            root: Some(root),
            guest_only: covers.seal(&found.record.name, true)?,
            mounted: None,
        })
    }

    fn of_ended(
        store: &Path,
        found: &Found,
        plan: &SandboxPlan,
        direction: Direction,
    ) -> Result<Self> {
        let container = &found.directories.container;
        let what = || format!("cannot reach the files of container {}", found.record.name);
        let upper = container.join("upper");
        let locks = [container, &upper].map(File::open);
        let [own, written] = locks;
        let locks = [own.with_context(what)?, written.with_context(what)?];
        let of_written = match direction {
            Direction::Out => FlockOperation::NonBlockingLockShared,
            Direction::In => FlockOperation::NonBlockingLockExclusive,
        };
        // Shared: who asks whether it runs is not to be told that it does.
        flock(&locks[0], FlockOperation::NonBlockingLockShared)
            .and_then(|()| flock(&locks[1], of_written))
            .context("another process is at it")
            .with_context(what)?;
        let lower = &plan.rootfs.lower;
        let lease = Store::open(store)
            .and_then(|store| store.lease(lower))
            .with_context(what)?;
        enter_namespace()?;
        // Nobody else sees that something is mounted there.
        let point = container.clone();
        let work = match direction {
            Direction::Out => {
                overlay_to_read(lower, &upper, &point)?;
                None
            }
            Direction::In => {
                let work = container.join("work");
                remove_tree(&work).with_context(what)?;
                fs::create_dir(&work).with_context(what)?;
                overlay(lower, &upper, &work, &point, Written::Stays)?;
                Some(work)
            }
        };
        let mounted = Mounted {
            point,
            work,
            _locks: locks,
            _lease: lease,
        };
        let root = open_root(&mounted.point).with_context(what)?;
        let covers = put_mounts(plan, &root, |volume| place_without_links(&volume.source))?;
        Ok(Self {
            root: Some(root),
            guest_only: covers.seal(&found.record.name, false)?,
            mounted: Some(mounted),
        })
    }
}

impl Drop for Tree {
    /// What stays is in nobody's way: the namespace goes with this process, and the next copy makes its directory anew.
    fn drop(&mut self) {
        drop(self.root.take());
        let Some(mounted) = self.mounted.take() else {
            return;
        };
        let _ = unmount(&mounted.point, UnmountFlags::DETACH);
        if let Some(work) = &mounted.work {
            let _ = remove_tree(work);
        }
    }
}

fn open_root(path: &Path) -> io::Result<Root> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root: OwnedFd = openat(CWD, path, flags, Mode::empty())?;
    Ok(Root::Container(root))
}

/// Mounts volumes where the container sees them, and covers what only the guest has, in the guest's order. The guest may
/// have put anything at their places: what is found there is in the root, and a place that is gone has no volume.
fn put_mounts(
    plan: &SandboxPlan,
    root: &Root,
    find: impl Fn(&SharedVolume) -> io::Result<OwnedFd>,
) -> Result<Covers> {
    let mut covers = Covers::default();
    for mount in plan.spec.mounts().iter().flatten() {
        let source = mount.source().as_deref();
        let Some(volume) = source.and_then(|source| plan.volume_at(source)) else {
            if let Ok(Some(point)) = root.find(mount.destination(), true) {
                let is_disk = source.is_some_and(|source| plan.host_source(source).is_some());
                covers.put(&point, mount.destination(), is_disk)?;
            }
            continue;
        };
        let shown = volume.source.display();
        let source = match find(volume) {
            Ok(source) => source,
            Err(error) => {
                log::tell(format_args!(
                    "coracle: the volume {shown} is left out, since it is not what it was: {error}"
                ));
                continue;
            }
        };
        let found = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        let is_directory = found.is_dir();
        if let Ok(Some(point)) = covers.point(root, mount.destination(), is_directory) {
            bind_at(&found, volume.read_only, point.place())
                .with_context(|| format!("the volume {shown}"))?;
        }
    }
    Ok(covers)
}

fn place(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// What is at a path that had no link in it when the container was run. If it has one by now, somebody who may write to a
/// directory on the way has put it there, to have what it leads to read or written as root.
fn place_without_links(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn volume_in_whose_place_somebody_put_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("owned/volume")).unwrap();
        fs::create_dir_all(path.join("root/volume")).unwrap();
        let volume = path.join("owned/volume");
        place_without_links(&volume).unwrap();

        fs::remove_dir(&volume).unwrap();
        symlink(path.join("root"), &volume).unwrap();
        let itself = place_without_links(&volume).unwrap_err();
        let below = place_without_links(&volume.join("volume")).unwrap_err();

        for error in [itself, below] {
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{error}");
        }
    }
}
