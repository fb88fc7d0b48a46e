// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the mounts of a share may be to the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// Makes all mounts of a tree hold nothing but files to this host: whoever is on it opens no device there, runs no
/// program, and gains nothing by set-user-id. What they are to a guest, the guest's kernel says.
///
/// `tree` is the root of the tree; a host that mounts something into a share does this while the mount is still
/// detached (as `open_tree(2)` and `fsmount(2)` give it), before anybody sees it. `more` are attributes beside these,
/// such as read-only. `propagation` says what becomes of mounts that the host makes there later; empty, it stays as it
/// is.
///
/// # Errors
/// As for `mount_setattr(2)`.
pub fn confine(
    tree: impl AsFd,
    more: MountAttrFlags,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let files_alone = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let attributes = libc::mount_attr {
        attr_set: (files_alone | more).bits().into(),
        attr_clr: 0,
        propagation: propagation.bits().into(),
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, the structure is as long as is said, and both outlive the call,
    // which keeps neither.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
