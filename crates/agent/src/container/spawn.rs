// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts a container's first process.
//!
//! It is born by `clone3` in its new namespaces and in its cgroup, so that at no time a process of the container is
//! outside of them, and executes this program again as `coracle-agent init` (see [`crate::init`]). Between the two it is
//! a copy of one thread of many: it may call the kernel, and nothing else.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::program::program;
use super::stdio::ContainerEnds;
use crate::init::CHANNEL_FD;
use crate::spec::{NamespaceKind, Spec};

/// Status of a process that could not execute the program; nobody but a log sees it.
const LOST: libc::c_int = 70;

/// Of linux/sched.h; libc's own overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
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

/// The namespaces of `spec` in which its first process is born. The one for cgroups is made later, by the process.
#[must_use]
pub fn birth_namespaces(spec: &Spec) -> libc::c_int {
    const FLAGS: [(NamespaceKind, libc::c_int); 5] = [
        (NamespaceKind::Mount, libc::CLONE_NEWNS),
        (NamespaceKind::Pid, libc::CLONE_NEWPID),
        (NamespaceKind::Uts, libc::CLONE_NEWUTS),
        (NamespaceKind::Ipc, libc::CLONE_NEWIPC),
        (NamespaceKind::Network, libc::CLONE_NEWNET),
    ];
    FLAGS
        .into_iter()
        .filter(|(kind, _)| spec.has_namespace(*kind))
        .fold(0, |flags, (_, flag)| flags | flag)
}

/// Starts a process with `ends` as its standard streams and `channel` to hear from the agent. Gives its PID and a PID
/// descriptor.
///
/// # Errors
///
/// The kernel makes no process: a limit of the cgroup or of the guest, no memory, or no such namespaces. Or this
/// program is no longer there to be executed.
pub fn spawn(
    namespaces: libc::c_int,
    cgroup: BorrowedFd<'_>,
    ends: &ContainerEnds,
    channel: BorrowedFd<'_>,
) -> io::Result<(i32, OwnedFd)> {
    let descriptors = [
        ends.stdin.as_raw_fd(),
        ends.stdout.as_raw_fd(),
        ends.stderr.as_raw_fd(),
        channel.as_raw_fd(),
        program()?.as_raw_fd(),
    ];
    let arguments = [
        c"coracle-agent".as_ptr(),
        c"init".as_ptr(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null()];
    let mut pidfd: RawFd = -1;
    let clone = CloneArguments {
        // These flags are positive and go into 64 bits as they are.
        flags: u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned()) | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd().cast_unsigned().into(),
        ..CloneArguments::default()
    };
    // SAFETY: the child gets a copy of this memory and, after the call, does nothing but system calls on arrays that are
    // complete already; the parent gets a PID, and a descriptor written to `pidfd`.
    let pid = unsafe {
        let pid = libc::syscall(
            libc::SYS_clone3,
            &raw const clone,
            size_of::<CloneArguments>(),
        );
        if pid == 0 {
            execute(descriptors, arguments.as_ptr(), environment.as_ptr());
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// In the child: puts its descriptors in their places, closes all others and executes this program again.
///
/// # Safety
///
/// Both arrays hold C strings and end with a null pointer.
unsafe fn execute(
    descriptors: [RawFd; 5],
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
) -> ! {
    const PROGRAM: RawFd = CHANNEL_FD + 1;
    const ABOVE: RawFd = PROGRAM + 1;
    // SAFETY: nothing but system calls, each of which takes numbers or the caller's strings. The memory of the agent's other
    // threads is as it was when they were left behind, and is not touched.
    unsafe {
        // First out of the way of each other's places.
        let mut parked = [-1; 5];
        for (parked, descriptor) in parked.iter_mut().zip(descriptors) {
            *parked = libc::fcntl(descriptor, libc::F_DUPFD, ABOVE);
        }
        for (place, parked) in (0..).zip(parked) {
            if libc::dup2(parked, place) < 0 {
                libc::_exit(LOST);
            }
        }
        if libc::syscall(libc::SYS_close_range, ABOVE.cast_unsigned(), u32::MAX, 0) < 0 {
            libc::_exit(LOST);
        }
        // What is executed needs its own descriptor no longer.
        libc::fcntl(PROGRAM, libc::F_SETFD, libc::FD_CLOEXEC);
        let flags = libc::AT_EMPTY_PATH;
        libc::syscall(
            libc::SYS_execveat,
            PROGRAM,
            c"".as_ptr(),
            arguments,
            environment,
            flags,
        );
        libc::_exit(LOST)
    }
}
