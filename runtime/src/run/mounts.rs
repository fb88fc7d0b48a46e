// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mounts that make up the tree shared with the guest.
//!
//! They live in a mount namespace of the run's own: the host sees none of them, and they vanish
//! with the run's last process, however it ends.
//!
//! ```text
//! share/rootfs       overlay: the image below, the run's writable layer above
//! share/volumes/N    bind mounts, read-only ones mounted read-only on the host's side
//! share/modules      a bind mount of the guest kernel's modules, if it has any, read-only
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread, and what it starts, a mount namespace of its own, from which nothing gets back to the host's.
pub fn enter_namespace() -> Result<()> {
    // SAFETY: a new mount namespace changes no descriptor or memory that other code relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .context("cannot make a mount namespace (that needs root or CAP_SYS_ADMIN)")?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context("cannot keep the mounts of this namespace from the host")
}

/// Whether what is written is wanted after the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is synced where the guest asks for that, and at the run's end.
    Stays,
    /// It need not survive a crash of the host: nothing waits for the disk.
    GoesWithTheRun,
}

/// Mounts `lower` read-only at `target`, with `upper` to take what is written.
pub fn overlay(
    lower: &Path,
    upper: &Path,
    work: &Path,
    target: &Path,
    written: Written,
) -> Result<()> {
    let what = || format!("cannot mount a writable layer over {}", lower.display());
    let overlay = open_overlay()?;
    // Layers are named by descriptor: in the option's text a comma or colon of a path would end it.
    // They are looked up when the file system is created, so they stay open until then.
    let mut layers = Vec::new();
    for (key, directory) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        let file = File::open(directory)
            .with_context(|| format!("cannot open {}", directory.display()))?;
        fsconfig_set_string(
            overlay.as_fd(),
            key,
            format!("/proc/self/fd/{}", file.as_raw_fd()),
        )
        .with_context(what)?;
        layers.push(file);
    }
    // What has several names below has them above: without this, one of them alone is given what is written, and to the
    // guest, which goes by the inode, it may be another than the one that was meant. A layer that was written before
    // may have been so on another tree, and would be refused.
    if is_empty(upper).with_context(what)? {
        fsconfig_set_string(overlay.as_fd(), "index", "on").with_context(what)?;
    }
    // The root of the whole is the writable layer's: it has to look like the one below.
    let below =
        fs::metadata(lower).with_context(|| format!("cannot look at {}", lower.display()))?;
    chown(upper, Some(below.uid()), Some(below.gid())).with_context(what)?;
    fs::set_permissions(upper, below.permissions()).with_context(what)?;
    if written == Written::GoesWithTheRun {
        fsconfig_set_flag(overlay.as_fd(), "volatile").with_context(what)?;
    }
    mount(overlay, false, target).with_context(what)
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// Mounts `lower` at `target` under what is written in `upper`, all of it read-only.
pub fn overlay_to_read(lower: &Path, upper: &Path, target: &Path) -> Result<()> {
    let what = || format!("cannot mount {} over {}", upper.display(), lower.display());
    let overlay = open_overlay()?;
    let [upper, lower] = [upper, lower].map(|directory| {
        File::open(directory).with_context(|| format!("cannot open {}", directory.display()))
    });
    let (upper, lower) = (upper?, lower?);
    let layers = [&upper, &lower].map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    fsconfig_set_string(overlay.as_fd(), "lowerdir", layers.join(":")).with_context(what)?;
    mount(overlay, true, target).with_context(what)
}

fn open_overlay() -> Result<OwnedFd> {
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .context("the host's kernel has no overlay file system (try: modprobe overlay)")
}

fn mount(overlay: OwnedFd, read_only: bool, target: &Path) -> Result<()> {
    fsconfig_create(overlay.as_fd())?;
    let mount = fsmount(
        overlay.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    confine(mount.as_fd(), read_only)?;
    attach(mount.as_fd(), target)
}

/// Makes the point at which `source`, a file or a directory, will be mounted, with the directories above it.
pub fn make_point(source: &Path, point: &Path) -> Result<()> {
    let is_directory = fs::metadata(source)
        .with_context(|| format!("cannot look at {}", source.display()))?
        .is_dir();
    let parent = point.parent().unwrap_or(point);
    let made = fs::create_dir_all(parent).and_then(|()| {
        if is_directory {
            fs::create_dir(point)
        } else {
            File::create(point).map(drop)
        }
    });
    made.with_context(|| format!("cannot make the mount point {}", point.display()))
}

/// Makes `directory` itself, but nothing that is mounted in it later, read-only: a guest that sees it could
/// otherwise fill the file system that it is on.
pub fn seal(directory: &Path) -> Result<()> {
    let what = || format!("cannot make {} read-only", directory.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags).with_context(what)?;
    confine(tree.as_fd(), true).with_context(what)?;
    attach(tree.as_fd(), directory)
}

/// Binds the file or directory `source`, with the mounts below it, at `target`.
pub fn bind(source: &Path, read_only: bool, target: &Path) -> Result<()> {
    attach(detached(source, read_only)?.as_fd(), target)
}

/// The same, at the place that `point` is.
pub fn bind_at(source: &Path, read_only: bool, point: BorrowedFd<'_>) -> Result<()> {
    let tree = detached(source, read_only)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree.as_fd(), "", point, "", flags)
        .with_context(|| format!("cannot mount {}", source.display()))
}

/// The file or directory `source`, with the mounts below it, as a tree of mounts that is nowhere yet.
fn detached(source: &Path, read_only: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)
        .with_context(|| format!("cannot share {} with the container", source.display()))?;
    confine(tree.as_fd(), read_only)
        .with_context(|| format!("cannot confine the share of {}", source.display()))?;
    Ok(tree)
}

fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    move_mount(
        mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .with_context(|| format!("cannot mount at {}", target.display()))
}

/// Cuts a detached tree of mounts off from the host's, so that nothing which the host mounts there later appears with
/// flags of its own, and makes all of it read-only if asked to. What is on it is the guest's: on the host no device
/// in it can be opened and no program run.
fn confine(tree: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let more = if read_only {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    coracle_virtiofs::sandbox::confine(tree, more, MountPropagationFlags::PRIVATE)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::stays(Written::Stays, false)]
    #[case::goes(Written::GoesWithTheRun, true)]
    fn what_stays_is_synced(#[case] written: Written, #[case] volatile: bool) {
        // The upper directory of one overlay cannot be on another.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let places = ["lower", "upper", "work", "target"].map(|name| directory.path().join(name));
        places
            .iter()
            .for_each(|place| fs::create_dir(place).unwrap());
        let [lower, upper, work, target] = places;
        // The name space is the thread's alone.
        let look = move || {
            enter_namespace().unwrap();
            overlay(&lower, &upper, &work, &target, written).unwrap();
            fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
        };

        let mounts = thread::spawn(look).join().unwrap();

        let place = directory.path().join("target").display().to_string();
        let ours = mounts.lines().find(|line| line.contains(&place)).unwrap();
        assert_eq!(ours.contains("volatile"), volatile, "{ours}");
    }

    #[test]
    fn what_is_written_by_one_name_of_a_file_is_there_by_the_other() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let places = ["lower", "upper", "work", "target"].map(|name| directory.path().join(name));
        places
            .iter()
            .for_each(|place| fs::create_dir(place).unwrap());
        let [lower, upper, work, target] = places;
        fs::write(lower.join("one"), "before").unwrap();
        fs::hard_link(lower.join("one"), lower.join("two")).unwrap();
        // The name space is the thread's alone.
        let change = move || {
            enter_namespace().unwrap();
            overlay(&lower, &upper, &work, &target, Written::Stays).unwrap();
            fs::write(target.join("one"), "after").unwrap();
            let [one, two] = ["one", "two"].map(|name| target.join(name));
            let names = fs::metadata(one).unwrap().nlink();
            (fs::read_to_string(two).unwrap(), names)
        };

        let found = thread::spawn(change).join().unwrap();

        assert_eq!(found, ("after".to_owned(), 2));
    }
}
