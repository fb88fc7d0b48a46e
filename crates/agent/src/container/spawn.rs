// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts a container's first process, or the maker of a further one.
//!
//! The first is born by `clone3` in its new namespaces and in its cgroup, so that at no time a process of the container is
//! outside of them, and executes this program again (see [`crate::init`]). Between the two it is a copy of one thread of
//! many: it may call the kernel, and nothing else.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::program::program;
use super::stdio::ProcessEnds;
use crate::clone::{Parent, clone};
use crate::init::{CONTAINER_FD, Role};
use crate::spec::{NamespaceKind, Spec};

/// Status of a process that could not execute the program; nobody but a log sees it.
const LOST: libc::c_int = 70;

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

/// What a process is born with.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// The namespaces that are made for it.
    pub namespaces: libc::c_int,
    /// The cgroup that it is born in.
    pub cgroup: BorrowedFd<'a>,
    /// The first process of the container that it is to enter; without, it is the first itself.
    pub container: Option<BorrowedFd<'a>>,
}

/// Starts a process with `ends` as its standard streams and `channel` to hear from the agent. Gives its PID and a PID
/// descriptor.
///
/// # Errors
///
/// The kernel makes no process: a limit of the cgroup or of the guest, no memory, or no such namespaces. Or this
/// program is no longer there to be executed.
pub fn spawn(
    birth: &Birth<'_>,
    ends: &ProcessEnds,
    channel: BorrowedFd<'_>,
) -> io::Result<(i32, OwnedFd)> {
    let role = match birth.container {
        None => Role::First,
        Some(_) => Role::Further,
    };
    let descriptors = [
        ends.stdin.as_raw_fd(),
        ends.stdout.as_raw_fd(),
        ends.stderr.as_raw_fd(),
        channel.as_raw_fd(),
        // One that has no container to enter has its channel twice, and closes the second.
        birth.container.unwrap_or(channel).as_raw_fd(),
        program()?.as_raw_fd(),
    ];
    let role: &CStr = role.argument();
    let arguments = [c"coracle-agent".as_ptr(), role.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: the copy does nothing but system calls, on arrays that are complete already.
    let process = unsafe { clone(birth.namespaces, Parent::Own, Some(birth.cgroup))? };
    match process {
        Some(process) => Ok(process),
        // SAFETY: both arrays hold C strings and end with a null pointer.
        None => unsafe { execute(descriptors, arguments.as_ptr(), environment.as_ptr()) },
    }
}

/// In the child: puts its descriptors in their places, closes all others and executes this program again.
///
/// # Safety
///
/// Both arrays hold C strings and end with a null pointer.
unsafe fn execute(
    descriptors: [RawFd; 6],
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
) -> ! {
    const PROGRAM: RawFd = CONTAINER_FD + 1;
    const ABOVE: RawFd = PROGRAM + 1;
    // SAFETY: nothing but system calls, each of which takes numbers or the caller's strings. The memory of the agent's other
    // threads is as it was when they were left behind, and is not touched.
    unsafe {
        // First out of the way of each other's places.
        let mut parked = [-1; 6];
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
