// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that a file server makes. Any other ends the process.

use std::io;

use coracle_seccomp::{Call, Otherwise, TooLong, compile};
use seccompiler::BpfProgram;

/// Allowed with any arguments.
const ALWAYS: &[libc::c_long] = &[
    // Finding files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    // Making, moving and removing names.
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    // Changing attributes.
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    // File data.
    libc::SYS_preadv,
    libc::SYS_pwritev2,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    // Acting as the guest's users, within what the capabilities allow.
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    // The vhost-user connection, the events of queues, and messages to standard error.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    // What the language and the C library do by themselves: memory, threads, time, randomness, the end.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// How an argument has to be.
enum Argument {
    /// One of these values.
    OneOf(&'static [i32]),
    /// Without any of these bits.
    Without(i32),
    /// The number of this process.
    ThisProcess,
}

/// Allowed with one argument, by its index, as said.
const SOMETIMES: &[(libc::c_long, u32, Argument)] = &[
    // No memory that code could be written to and run from.
    (libc::SYS_mmap, 2, Argument::Without(libc::PROT_EXEC)),
    (libc::SYS_mprotect, 2, Argument::Without(libc::PROT_EXEC)),
    (
        libc::SYS_fcntl,
        1,
        Argument::OneOf(&[
            libc::F_GETFD,
            libc::F_SETFD,
            libc::F_GETFL,
            libc::F_SETFL,
            libc::F_DUPFD_CLOEXEC,
        ]),
    ),
    // Sockets and events are made non-blocking by it.
    (libc::SYS_ioctl, 1, Argument::OneOf(&[0x5421])),
    // The names of threads.
    (libc::SYS_prctl, 0, Argument::OneOf(&[libc::PR_SET_NAME])),
    // `abort`.
    (libc::SYS_tgkill, 0, Argument::ThisProcess),
];

/// Installs the filter for this thread and those that it starts.
pub(super) fn apply() -> io::Result<()> {
    let program = program().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

fn program() -> Result<BpfProgram, TooLong> {
    let always = ALWAYS.iter().map(|call| Call::any(*call));
    let sometimes = SOMETIMES
        .iter()
        .map(|(call, index, argument)| argument.of(*call, *index));
    compile(always.chain(sometimes).collect(), Otherwise::KillProcess)
}

impl Argument {
    /// `call`, if its argument `index` is so.
    fn of(&self, call: libc::c_long, index: u32) -> Call {
        match self {
            Self::OneOf(values) => {
                let words: Vec<_> = values.iter().map(|value| value.cast_unsigned()).collect();
                Call::with(call, index, &words)
            }
            Self::Without(mask) => Call::without(call, index, mask.cast_unsigned()),
            Self::ThisProcess => Call::with(call, index, &[std::process::id()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_a_filter() {
        assert!(program().is_ok());
    }

    #[test]
    fn no_call_is_allowed_twice() {
        let mut calls: Vec<_> = ALWAYS
            .iter()
            .chain(SOMETIMES.iter().map(|(call, ..)| call))
            .collect();
        let all = calls.len();
        calls.sort_unstable();
        calls.dedup();

        assert_eq!(calls.len(), all);
    }
}
