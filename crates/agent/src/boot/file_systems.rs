// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's own file systems.

use std::fs;
use std::io;

use rustix::mount::MountFlags;

use super::BootError;
use crate::cgroup;

struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const NO_SET_UID: MountFlags = MountFlags::NOSUID;
const DATA_ONLY: MountFlags = NO_SET_UID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

const DEVICES: FileSystem = FileSystem {
    kind: "devtmpfs",
    target: "/dev",
    flags: NO_SET_UID.union(MountFlags::NOEXEC),
    options: c"mode=0755",
};

const OTHERS: [FileSystem; 5] = [
    FileSystem {
        kind: "proc",
        target: "/proc",
        flags: DATA_ONLY,
        options: c"",
    },
    FileSystem {
        kind: "sysfs",
        target: "/sys",
        flags: DATA_ONLY,
        options: c"",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: DATA_ONLY,
        options: c"mode=0755",
    },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: NO_SET_UID.union(MountFlags::NOEXEC),
        options: c"mode=0620,gid=5,ptmxmode=0666",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: DATA_ONLY,
        options: c"mode=1777",
    },
];

/// Puts the root on a mount of its own. The initramfs itself is the one mount that `pivot_root` cannot leave, and containers
/// have to leave it.
pub(super) fn leave_initramfs() -> io::Result<()> {
    // Any directory does: it is only the way there.
    const AWAY: &str = "/run";
    fs::create_dir_all(AWAY)?;
    rustix::mount::mount_bind("/", AWAY)?;
    rustix::process::chdir(AWAY)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Mounts the devices that the kernel knows.
pub(super) fn mount_devices() -> Result<(), BootError> {
    mount(&DEVICES)
}

/// Mounts all others.
pub(super) fn mount_others() -> Result<(), BootError> {
    for file_system in &OTHERS {
        mount(file_system)?;
    }
    mount_cgroups()
}

fn mount(file_system: &FileSystem) -> Result<(), BootError> {
    let FileSystem {
        kind,
        target,
        flags,
        options,
    } = *file_system;
    fs::create_dir_all(target)
        .and_then(|()| Ok(rustix::mount::mount(kind, target, kind, flags, options)?))
        .map_err(|source| BootError::Mount {
            kind,
            target,
            source,
        })
}

/// Mounts the unified hierarchy so that processes move into cgroups without waiting for all processors, where the kernel
/// offers that (since 6.0).
fn mount_cgroups() -> Result<(), BootError> {
    let mount = |options| {
        mount(&FileSystem {
            kind: "cgroup2",
            target: cgroup::MOUNT_POINT,
            flags: DATA_ONLY,
            options,
        })
    };
    match mount(c"favordynmods") {
        Err(BootError::Mount { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
            mount(c"")
        }
        result => result,
    }
}
