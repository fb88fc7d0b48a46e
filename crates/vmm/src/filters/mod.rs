// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that each kind of thread may make: lists of what is allowed, which is what running a guest takes
//! and nothing else.
//!
//! What is not listed traps: the process says which call it was and ends ([`violation`]). In particular there is no way to
//! another program (`execve`), another thread or process (`clone`), a file by its path (`open`) or the kernel's rings
//! (`io_uring_setup`, whose operations a filter never sees); memory cannot be made executable, sockets are Unix
//! sockets, and signals go to this process only.

mod program;
mod violation;

use libc::c_long;
use program::{Call, compile};
use seccompiler::BpfProgram;
use thiserror::Error;
use vmm_sys_util::errno;

pub use program::TooLong;
pub use violation::VIOLATION_STATUS;
pub(crate) use violation::report_to;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u32 = 0xae80;
/// `_IO(KVMIO, 0xad)`: tells a guest that it stood still.
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
/// `_IO(0x12, 119)`: tells a block device what is not needed any more.
const BLKDISCARD: u32 = 0x1277;
/// Reading a vCPU's registers and what it does: `KVM_GET_REGS`, `KVM_GET_SREGS`, `KVM_GET_MSRS`, `KVM_GET_MP_STATE`.
const KVM_READ: [u32; 4] = [0x8090_ae81, 0x8138_ae83, 0xc008_ae88, 0x8004_ae98];
/// `_IOW('T', 208, unsigned int)`: what the driver of a network device lets its tap leave to it.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// Changing a vCPU's registers and breakpoints: `KVM_SET_REGS`, `KVM_SET_SREGS`, `KVM_GET_FPU`, `KVM_SET_FPU`,
/// `KVM_SET_GUEST_DEBUG`.
const KVM_DEBUG: [u32; 5] = [
    0x4090_ae82,
    0x4138_ae84,
    0x81a0_ae8c,
    0x41a0_ae8d,
    0x4048_ae9b,
];
/// Makes a socket non-blocking.
const FIONBIO: u32 = 0x5421;

/// Memory, locks, descriptors that are open (a vhost-user backend's socket and the logs among them), random numbers, and
/// ends.
const EVERY_THREAD: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Activating a device when its driver is ready, and giving up a back end that does not take part.
const VCPU: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
];

/// Waiting for events, the host's side of vsock connections, removing the name of the vsock device's own socket, and
/// finding the holes of guest memory for a dump.
const EVENT_LOOP: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_lseek,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_timerfd_settime,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Waiting for a disk's events and doing its I/O.
const DISK: &[c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_pwritev,
];

/// A debugger's connection.
const DEBUGGER: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
];

/// A filter that cannot be made or applied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A list that is no filter.
    #[error("the system call filter of {threads} cannot be compiled")]
    Compile {
        /// Whose filter.
        threads: &'static str,
        /// The reason.
        source: TooLong,
    },
    /// The kernel refused it.
    #[error("the system call filter of {threads} cannot be applied")]
    Apply {
        /// Whose filter.
        threads: &'static str,
        /// The reason.
        source: seccompiler::Error,
    },
    /// Violations would be silent.
    #[error("the handler of forbidden system calls cannot be installed")]
    Handler(#[source] errno::Error),
}

/// The filters of a machine's threads.
#[derive(Debug)]
pub struct Filters {
    pub(crate) vcpu: Filter,
    pub(crate) event_loop: Filter,
    pub(crate) disk: Filter,
}

impl Filters {
    /// Compiles the filters for this process. A forbidden call then ends the process with [`VIOLATION_STATUS`],
    /// after a line on standard error that names the call.
    ///
    /// # Errors
    ///
    /// [`FilterError`] if the handler of violations cannot be installed.
    pub fn new() -> Result<Self, FilterError> {
        violation::install_handler().map_err(FilterError::Handler)?;
        let vcpu = [EVERY_THREAD, VCPU].concat();
        let event_loop = [EVERY_THREAD, EVENT_LOOP].concat();
        let disk = [EVERY_THREAD, DISK].concat();
        Ok(Self {
            vcpu: Filter::compile(
                "a vCPU",
                &vcpu,
                vec![Call::with(
                    libc::SYS_ioctl,
                    1,
                    &[KVM_RUN, KVM_KVMCLOCK_CTRL],
                )],
            )?,
            event_loop: Filter::compile(
                "the event loop",
                &event_loop,
                vec![
                    Call::with(
                        libc::SYS_ioctl,
                        1,
                        &[&[FIONBIO, TUNSETOFFLOAD][..], &KVM_READ].concat(),
                    ),
                    Call::with(libc::SYS_socket, 0, &[word(libc::AF_UNIX)]),
                ],
            )?,
            disk: Filter::compile(
                "a disk",
                &disk,
                vec![Call::with(libc::SYS_ioctl, 1, &[BLKDISCARD])],
            )?,
        })
    }
}

impl Filter {
    /// That of the debugger's thread, which is made only where there is one.
    pub(crate) fn debugger() -> Result<Self, FilterError> {
        Self::compile(
            "the debugger",
            &[EVERY_THREAD, DEBUGGER].concat(),
            vec![Call::with(
                libc::SYS_ioctl,
                1,
                &[&KVM_READ[..], &KVM_DEBUG].concat(),
            )],
        )
    }
}

/// Calls that every thread may make with some arguments only.
fn restricted_calls() -> [Call; 4] {
    [
        Call::without(libc::SYS_mmap, 2, word(libc::PROT_EXEC)),
        Call::without(libc::SYS_mprotect, 2, word(libc::PROT_EXEC)),
        // Duplicating a descriptor, and what a debug build does before it closes one.
        Call::with(
            libc::SYS_fcntl,
            1,
            &[word(libc::F_DUPFD_CLOEXEC), word(libc::F_GETFD)],
        ),
        // Kicks of vCPUs, and a panic's abort.
        Call::with(libc::SYS_tgkill, 0, &[std::process::id()]),
    ]
}

/// A constant of C, none of which is negative here.
fn word(constant: libc::c_int) -> u32 {
    constant.unsigned_abs()
}

/// A compiled filter for one kind of thread.
#[derive(Debug)]
pub(crate) struct Filter {
    threads: &'static str,
    program: BpfProgram,
}

impl Filter {
    fn compile(
        threads: &'static str,
        unrestricted: &[c_long],
        mut calls: Vec<Call>,
    ) -> Result<Self, FilterError> {
        calls.extend(restricted_calls());
        calls.extend(unrestricted.iter().map(|call| Call::any(*call)));
        match compile(calls) {
            Ok(program) => Ok(Self { threads, program }),
            Err(source) => Err(FilterError::Compile { threads, source }),
        }
    }

    /// Confines the calling thread, for ever.
    pub(crate) fn apply(&self) -> Result<(), FilterError> {
        seccompiler::apply_filter(&self.program).map_err(|source| FilterError::Apply {
            threads: self.threads,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Makes one system call in a child that is confined by `filter`, and returns how the child ended.
    fn status_after(filter: &Filter, call: c_long, arguments: [c_long; 4]) -> i32 {
        let [a, b, c, d] = arguments;
        // SAFETY: the child makes system calls only: it neither allocates nor takes a lock before it ends.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                // The line that names the call is not for the output of the tests.
                libc::close(libc::STDERR_FILENO);
                let confined = filter.apply().is_ok();
                libc::syscall(call, a, b, c, d);
                libc::_exit(if confined { 0 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert!(libc::WIFEXITED(status), "killed: {status:#x}");
            libc::WEXITSTATUS(status)
        }
    }

    /// Of a vCPU, the event loop, a disk and the debugger.
    fn statuses_after(filters: &Filters, call: c_long, arguments: [c_long; 4]) -> [i32; 4] {
        let debugger = Filter::debugger().unwrap();
        [&filters.vcpu, &filters.event_loop, &filters.disk, &debugger]
            .map(|filter| status_after(filter, call, arguments))
    }

    #[rstest]
    #[case::another_program(libc::SYS_execve, [0; 4])]
    #[case::another_process(libc::SYS_clone, [17, 0, 0, 0])]
    #[case::another_thread(libc::SYS_clone3, [0; 4])]
    #[case::a_file(libc::SYS_openat, [-100, 0, 0, 0])]
    #[case::rings(libc::SYS_io_uring_setup, [1, 0, 0, 0])]
    #[case::executable_memory(libc::SYS_mmap, [0, 4096, 7, 0x22])]
    #[case::memory_made_executable(libc::SYS_mprotect, [0, 4096, 4, 0])]
    #[case::network_socket(libc::SYS_socket, [2, 1, 0, 0])]
    #[case::another_virtual_machine(libc::SYS_ioctl, [-1, 0xae01, 0, 0])]
    #[case::terminal_input(libc::SYS_ioctl, [-1, 0x5412, 0, 0])]
    #[case::another_tap(libc::SYS_ioctl, [-1, 0x4004_54ca, 0, 0])]
    #[case::descriptor_flags(libc::SYS_fcntl, [-1, 4, 0, 0])]
    #[case::signal_to_a_process(libc::SYS_kill, [1, 0, 0, 0])]
    #[case::signal_to_a_thread_elsewhere(libc::SYS_tgkill, [1, 1, 0, 0])]
    #[case::memory_of_others(libc::SYS_process_vm_writev, [1, 0, 0, 0])]
    #[case::mounts(libc::SYS_mount, [0; 4])]
    #[case::namespaces(libc::SYS_unshare, [0; 4])]
    #[case::no_system_call(1 << 20, [0; 4])]
    fn forbidden_call_ends_the_process(#[case] call: c_long, #[case] arguments: [c_long; 4]) {
        let filters = Filters::new().unwrap();

        let found = statuses_after(&filters, call, arguments);

        assert_eq!(found, [i32::from(VIOLATION_STATUS); 4]);
    }

    #[rstest]
    #[case::write(libc::SYS_write, [-1, 0, 0, 0])]
    #[case::memory(libc::SYS_mmap, [0, 4096, 3, 0x22])]
    #[case::duplicate(libc::SYS_fcntl, [-1, 1030, 0, 0])]
    #[case::receive(libc::SYS_recvmsg, [-1, 0, 0, 0])]
    fn call_of_every_thread_is_allowed(#[case] call: c_long, #[case] arguments: [c_long; 4]) {
        let filters = Filters::new().unwrap();

        let found = statuses_after(&filters, call, arguments);

        assert_eq!(found, [0; 4]);
    }

    #[rstest]
    #[case::running_a_guest(libc::SYS_ioctl, [-1, 0xae80, 0, 0], [0, 159, 159, 159])]
    #[case::telling_of_lost_time(libc::SYS_ioctl, [-1, 0xaead, 0, 0], [0, 159, 159, 159])]
    #[case::waiting_for_events(libc::SYS_epoll_wait, [-1, 0, 0, 0], [159, 0, 0, 159])]
    #[case::unix_socket(libc::SYS_socket, [1, 1, 0, 0], [159, 0, 159, 159])]
    #[case::offloads_of_a_tap(libc::SYS_ioctl, [-1, 0x4004_54d0, 0, 0], [159, 0, 159, 159])]
    #[case::reading_a_disk(libc::SYS_preadv, [-1, 0, 0, 0], [159, 159, 0, 159])]
    #[case::discarding(libc::SYS_ioctl, [-1, 0x1277, 0, 0], [159, 159, 0, 159])]
    #[case::connecting(libc::SYS_connect, [-1, 0, 0, 0], [159, 0, 159, 159])]
    #[case::reading_registers(libc::SYS_ioctl, [-1, 0x8090_ae81, 0, 0], [159, 0, 159, 0])]
    #[case::changing_registers(libc::SYS_ioctl, [-1, 0x4090_ae82, 0, 0], [159, 159, 159, 0])]
    #[case::breakpoints(libc::SYS_ioctl, [-1, 0x4048_ae9b, 0, 0], [159, 159, 159, 0])]
    #[case::finding_holes(libc::SYS_lseek, [-1, 0, 3, 0], [159, 0, 159, 159])]
    fn threads_differ(
        #[case] call: c_long,
        #[case] arguments: [c_long; 4],
        #[case] expected: [i32; 4],
    ) {
        let filters = Filters::new().unwrap();

        let found = statuses_after(&filters, call, arguments);

        assert_eq!(found, expected);
    }
}
