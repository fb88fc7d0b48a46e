// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes the mounts of a spec, each detached first and then attached to a mount point that is held by a descriptor:
//! between looking at a mount point and mounting on it, nobody can put a link in its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use super::failure;
use super::in_root::{Root, file_type};
use crate::spec::Mount;
use crate::spec::mount_options::{Bind, MountOptions};

/// Files of procfs that may be mounted upon, as other runtimes allow: they inform and control nothing.
const PROC_MOUNT_POINTS: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// Makes `mounts` in `root`, in their order; those of file systems on disks have been made, and are `disks`.
pub(super) fn attach_all(
    root: &Root,
    bundle: &Path,
    mounts: &[Mount],
    disks: Vec<OwnedFd>,
) -> Result<(), AgentError> {
    let mut disks = disks.into_iter();
    for mount in mounts {
        attach_one(root, bundle, mount, &mut disks).map_err(|(step, error)| {
            let what = match mount.kind.as_str() {
                "" | "bind" => format!("{} on {}", mount.source, mount.destination),
                kind => format!("{kind} on {}", mount.destination),
            };
            failure(
                ErrorKind::Mount,
                format!("cannot mount {what}: {step}"),
                error,
            )
        })?;
    }
    Ok(())
}

/// What went wrong in which step.
pub(crate) type StepError = (String, String);

trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, StepError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl Into<String>) -> Result<T, StepError> {
        self.map_err(|error| (step.into(), error.to_string()))
    }
}

fn attach_one(
    root: &Root,
    bundle: &Path,
    mount: &Mount,
    disks: &mut impl Iterator<Item = OwnedFd>,
) -> Result<(), StepError> {
    let options = MountOptions::parse(&mount.options)
        .map_err(|error| ("options".to_owned(), error.to_string()))?;
    let bind = match (mount.kind.as_str(), options.bind) {
        ("" | "bind", Bind::No) => Bind::Single,
        (_, bind) => bind,
    };
    let (tree, target) = match bind {
        Bind::No => {
            let tree = if mount.is_of_disks_file_system() {
                disks.next().ok_or(io::Errno::NODEV).step("take the disk")?
            } else {
                file_system(&mount.kind, &mount.source, &options)?
            };
            (tree, directory_target(root, mount)?)
        }
        Bind::Single => bind_mount(root, bundle, mount, false)?,
        Bind::Recursive => bind_mount(root, bundle, mount, true)?,
    };
    check_target(&target, mount)?;
    if bind != Bind::No {
        set_attributes(&tree, options.set, options.clear, false).step("set its attributes")?;
        set_attributes(&tree, options.set_recursive, options.clear_recursive, true)
            .step("set its attributes recursively")?;
    }
    if let Some((propagation, recursive)) = options.propagation {
        set_propagation(&tree, propagation, recursive).step("set its propagation")?;
    }
    attach(&tree, &target).step("attach it")
}

/// Makes a file system of its own, attached nowhere yet.
pub(crate) fn file_system(
    kind: &str,
    source: &str,
    options: &MountOptions,
) -> Result<OwnedFd, StepError> {
    // A guest has the unified hierarchy, by whichever name an engine asks for it.
    let kind = match kind {
        "cgroup" => "cgroup2",
        kind => kind,
    };
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .step(format!("the guest's kernel has no file system {kind}"))?;
    if !source.is_empty() {
        rustix::mount::fsconfig_set_string(&context, "source", source)
            .map_err(|error| explain(&context, "source", error))?;
    }
    for (name, value) in &options.data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, name, value),
            None => rustix::mount::fsconfig_set_flag(&context, name),
        }
        .map_err(|error| explain(&context, &format!("option `{name}`"), error))?;
    }
    rustix::mount::fsconfig_create(&context)
        .map_err(|error| explain(&context, "make the file system", error))?;
    let attributes = options.set | options.set_recursive;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .step("make the mount")
}

/// Adds what the kernel has to say about a failure to it.
fn explain(context: &OwnedFd, step: &str, error: io::Errno) -> StepError {
    let mut message = [0; 256];
    let explanation = match io::read(context, &mut message) {
        // Each message is led by its severity and a space.
        Ok(length) => String::from_utf8_lossy(message[..length].get(2..).unwrap_or_default())
            .trim_end()
            .to_owned(),
        Err(_) => error.to_string(),
    };
    (step.to_owned(), explanation)
}

/// Shows an existing directory or file, and makes a mount point of the same kind for it.
fn bind_mount(
    root: &Root,
    bundle: &Path,
    mount: &Mount,
    recursive: bool,
) -> Result<(OwnedFd, OwnedFd), StepError> {
    let source = open_source(bundle, &mount.source).step("open the source")?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(&source, "", flags).step("clone the source")?;
    let target = match file_type(&source).step("inspect the source")? {
        FileType::Directory => directory_target(root, mount)?,
        _ => root
            .make_file(Path::new(&mount.destination))
            .step("make the mount point")?,
    };
    Ok((tree, target))
}

/// Opens what a bind mount or the root file system shows. A relative path is one of the bundle, and no link leads out.
pub(super) fn open_source(bundle: &Path, source: &str) -> io::Result<OwnedFd> {
    // What the host has mounted in the share is mounted here when it is opened as a directory, and not before: a copy
    // made of the place below would be covered by it later.
    match open_source_with(bundle, source, OFlags::DIRECTORY) {
        Err(io::Errno::NOTDIR) => open_source_with(bundle, source, OFlags::empty()),
        result => result,
    }
}

fn open_source_with(bundle: &Path, source: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let place = OFlags::PATH | OFlags::CLOEXEC;
    let flags = flags | place;
    if source.starts_with('/') {
        return rustix::fs::openat(CWD, source, flags, Mode::empty());
    }
    let bundle = rustix::fs::openat(CWD, bundle, place | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&bundle, source, flags, Mode::empty(), resolve)
}

fn directory_target(root: &Root, mount: &Mount) -> Result<OwnedFd, StepError> {
    let path = Path::new(&mount.destination);
    let target = root.make_directory(path).step("make the mount point")?;
    // Elsewhere than where everybody, masked paths included, looks for them, these would be open to all, and devices
    // would be missing.
    if matches!(mount.kind.as_str(), "proc" | "sysfs") || path == Path::new("/dev") {
        return root
            .open_without_links(path)
            .step("use a mount point that the image made a link");
    }
    Ok(target)
}

/// Refuses a mount point inside procfs, where a link of the image may have led: what is mounted there would hide what
/// masks it, or stand in for files that are trusted.
fn check_target(target: &OwnedFd, mount: &Mount) -> Result<(), StepError> {
    let file_system = rustix::fs::fstatfs(target).step("inspect the mount point")?;
    if file_system.f_type == PROC_SUPER_MAGIC
        && !PROC_MOUNT_POINTS.contains(&mount.destination.as_str())
    {
        return Err((
            "use the mount point".to_owned(),
            "it lies in procfs".to_owned(),
        ));
    }
    Ok(())
}

/// Attaches a detached mount to the mount point that `target` holds.
pub(super) fn attach(tree: &OwnedFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

/// Makes a detached copy of the mount that `source` is on, beginning at `source`.
pub(crate) fn clone(source: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(source, "", flags)
}

/// Makes a small empty directory that nobody can write to.
pub(super) fn empty_directory() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "0")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Sets and clears attributes of the mount that `mount` is the root of, and of all below it if `recursive`.
pub(crate) fn set_attributes(
    mount: impl AsFd,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    if set.is_empty() && clear.is_empty() {
        return Ok(());
    }
    mount_setattr(
        mount.as_fd(),
        set,
        clear,
        MountPropagationFlags::empty(),
        recursive,
    )
}

pub(super) fn set_propagation(
    mount: impl AsFd,
    propagation: MountPropagationFlags,
    recursive: bool,
) -> io::Result<()> {
    let none = MountAttrFlags::empty();
    mount_setattr(mount.as_fd(), none, none, propagation, recursive)
}

/// `mount_setattr(2)`, which rustix lacks.
fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    propagation: MountPropagationFlags,
    recursive: bool,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes {
        set: set.bits().into(),
        clear: clear.bits().into(),
        propagation: propagation.bits().into(),
        user_namespace: 0,
    };
    let flags = if recursive {
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE
    } else {
        libc::AT_EMPTY_PATH
    };
    // SAFETY: the path is a C string, the kernel reads the attributes by the size given and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::up("../secret", io::Errno::XDEV)]
    #[case::link("link", io::Errno::LOOP)]
    #[case::through_link("link/passwd", io::Errno::LOOP)]
    #[case::missing("volumes/1", io::Errno::NOENT)]
    fn source_outside_of_the_bundle_is_refused(#[case] source: &str, #[case] expected: io::Errno) {
        let bundle = tempfile::tempdir().unwrap();
        symlink("/etc", bundle.path().join("link")).unwrap();
        fs::create_dir(bundle.path().join("volumes")).unwrap();

        let error = open_source(bundle.path(), source).unwrap_err();

        assert_eq!(error, expected);
    }

    #[test]
    fn source_in_the_bundle_is_opened() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir_all(bundle.path().join("volumes/0")).unwrap();

        let source = open_source(bundle.path(), "volumes/0").unwrap();

        assert_eq!(file_type(&source).unwrap(), FileType::Directory);
    }

    #[test]
    fn file_in_the_bundle_is_opened() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("file"), "").unwrap();

        let source = open_source(bundle.path(), "file").unwrap();

        assert_eq!(file_type(&source).unwrap(), FileType::RegularFile);
    }

    #[rstest]
    #[case("/proc/sys", true)]
    #[case("/proc/uptime", false)]
    fn mount_point_in_procfs_is_refused(#[case] destination: &str, #[case] refused: bool) {
        let target = rustix::fs::open(destination, OFlags::PATH, Mode::empty()).unwrap();
        let mount = Mount {
            destination: destination.to_owned(),
            ..Mount::default()
        };

        assert_eq!(check_target(&target, &mount).is_err(), refused);
    }
}
