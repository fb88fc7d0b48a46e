// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `clone3(2)`: new processes in namespaces and a cgroup, with a descriptor from the start.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Of linux/sched.h; libc's own overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Whose child the new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// This process'.
    Own,
    /// That of this process' parent.
    Shared,
}

/// Makes a copy of this process, in the namespaces of `flags` and in `cgroup`. Gives its PID and a PID descriptor, or
/// `None` in the copy.
///
/// # Errors
///
/// The kernel makes no process.
///
/// # Safety
///
/// If this process has more than one thread, the copy may do nothing but system calls that do not rely on what other threads
/// may have left half done.
pub(crate) unsafe fn clone(
    flags: libc::c_int,
    parent: Parent,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    let (parent_flag, exit_signal) = match parent {
        Parent::Own => (0, libc::SIGCHLD),
        // A sibling tells the parent as this process would, and no signal may be named.
        Parent::Shared => (libc::CLONE_PARENT, 0),
    };
    // All of these are positive and go into 64 bits as they are.
    let flags = (flags | parent_flag | libc::CLONE_PIDFD).cast_unsigned();
    let arguments = Arguments {
        flags: u64::from(flags) | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: exit_signal.cast_unsigned().into(),
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd().cast_unsigned().into()),
        ..Arguments::default()
    };
    // SAFETY: the kernel reads the arguments by their size and writes a descriptor to `pidfd`; the caller answers for what the
    // copy does.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(pid @ 1..) => Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
        _ => Err(io::Error::last_os_error()),
    }
}
