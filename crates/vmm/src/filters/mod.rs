// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that each kind of thread may make: lists of what is allowed, which is what running a guest takes
//! and nothing else.
//!
//! What is not listed traps: the process says which call it was and ends ([`violation`]). In particular there is no way to
//! another program (`execve`), another thread or process (`clone`), a file by its path (`open`) or the kernel's rings
//! (`io_uring_setup`, whose operations a filter never sees); memory cannot be made executable, sockets are Unix
//! sockets, and signals go to this process only.

mod lists;
mod violation;

use coracle_seccomp::{Otherwise, compile};
use seccompiler::BpfProgram;
use thiserror::Error;
use vmm_sys_util::errno;

pub use coracle_seccomp::TooLong;
use lists::List;
pub(crate) use lists::Uses;
pub use violation::VIOLATION_STATUS;
pub(crate) use violation::report_to;

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

/// The filters of a machine's threads, which are compiled for what the machine has when it starts.
#[derive(Debug)]
pub struct Filters(());

impl Filters {
    /// Prepares this process for them. A forbidden call then ends the process with [`VIOLATION_STATUS`], after a line on
    /// standard error that names the call.
    ///
    /// # Errors
    ///
    /// [`FilterError`] if the handler of violations cannot be installed.
    pub fn new() -> Result<Self, FilterError> {
        violation::install_handler().map_err(FilterError::Handler)?;
        Ok(Self(()))
    }

    pub(crate) fn vcpu(&self, uses: &Uses) -> Result<Filter, FilterError> {
        Filter::compile("a vCPU", lists::vcpu(uses))
    }

    pub(crate) fn event_loop(&self, uses: &Uses) -> Result<Filter, FilterError> {
        Filter::compile("the event loop", lists::event_loop(uses))
    }

    pub(crate) fn disk(&self) -> Result<Filter, FilterError> {
        Filter::compile("a disk", lists::disk())
    }

    pub(crate) fn debugger(&self) -> Result<Filter, FilterError> {
        Filter::compile("the debugger", lists::debugger())
    }
}

/// A compiled filter for one kind of thread.
#[derive(Debug)]
pub(crate) struct Filter {
    threads: &'static str,
    program: BpfProgram,
}

impl Filter {
    fn compile(threads: &'static str, list: List) -> Result<Self, FilterError> {
        match compile(list.into_calls(), Otherwise::Trap) {
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
    use libc::c_long;
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

    /// A machine with everything, whose log is a descriptor that is not open.
    fn everything() -> Uses {
        Uses {
            logs: vec![LOG],
            vsock: true,
            nets: true,
            back_ends: true,
            gdb: true,
            control: true,
        }
    }

    const LOG: i32 = 1000;

    /// Of a vCPU, the event loop, a disk and the debugger.
    fn statuses_after(uses: &Uses, call: c_long, arguments: [c_long; 4]) -> [i32; 4] {
        let filters = Filters::new().unwrap();
        [
            filters.vcpu(uses),
            filters.event_loop(uses),
            filters.disk(),
            filters.debugger(),
        ]
        .map(|filter| status_after(&filter.unwrap(), call, arguments))
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
        let found = statuses_after(&everything(), call, arguments);

        assert_eq!(found, [i32::from(VIOLATION_STATUS); 4]);
    }

    #[rstest]
    #[case::write(libc::SYS_write, [-1, 0, 0, 0])]
    #[case::memory(libc::SYS_mmap, [0, 4096, 3, 0x22])]
    #[case::duplicate(libc::SYS_fcntl, [-1, 1030, 0, 0])]
    fn call_of_every_thread_is_allowed(#[case] call: c_long, #[case] arguments: [c_long; 4]) {
        let found = statuses_after(&everything(), call, arguments);

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
    #[case::breakpoints(libc::SYS_ioctl, [-1, 0x4048_ae9b, 0, 0], [0, 159, 159, 0])]
    #[case::finding_holes(libc::SYS_lseek, [-1, 0, 3, 0], [159, 0, 159, 159])]
    #[case::receiving_a_file(libc::SYS_recvmsg, [-1, 0, 0, 0], [159, 0, 159, 159])]
    #[case::starting_a_back_end(libc::SYS_sendmsg, [-1, 0, 0, 0], [0, 0, 159, 159])]
    #[case::shortening_the_log(libc::SYS_ftruncate, [LOG as c_long, 0, 0, 0], [0, 0, 159, 159])]
    #[case::shortening_a_file(libc::SYS_ftruncate, [-1, 0, 0, 0], [159, 0, 159, 159])]
    #[case::writing_a_file(libc::SYS_pwrite64, [-1, 0, 0, 0], [159, 0, 0, 159])]
    #[case::reading_the_log(libc::SYS_pread64, [LOG as c_long, 0, 0, 0], [0, 0, 159, 159])]
    #[case::reading_a_file(libc::SYS_pread64, [-1, 0, 0, 0], [159; 4])]
    #[case::examining_a_descriptor(libc::SYS_statx, [-1, 0, 0x1000, 0], [159, 0, 159, 159])]
    #[case::following_a_link(libc::SYS_statx, [-1, 0, 0, 0], [159; 4])]
    fn threads_differ(
        #[case] call: c_long,
        #[case] arguments: [c_long; 4],
        #[case] expected: [i32; 4],
    ) {
        let found = statuses_after(&everything(), call, arguments);

        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::shortening_a_file(libc::SYS_ftruncate, [LOG as c_long, 0, 0, 0])]
    #[case::receiving_a_file(libc::SYS_recvmsg, [-1, 0, 0, 0])]
    #[case::sending_a_file(libc::SYS_sendmsg, [-1, 0, 0, 0])]
    #[case::unix_socket(libc::SYS_socket, [1, 1, 0, 0])]
    #[case::connecting(libc::SYS_connect, [-1, 0, 0, 0])]
    #[case::offloads_of_a_tap(libc::SYS_ioctl, [-1, 0x4004_54d0, 0, 0])]
    #[case::reading_registers(libc::SYS_ioctl, [-1, 0x8090_ae81, 0, 0])]
    #[case::breakpoints(libc::SYS_ioctl, [-1, 0x4048_ae9b, 0, 0])]
    #[case::examining_a_descriptor(libc::SYS_statx, [-1, 0, 0x1000, 0])]
    fn machine_without_the_part_makes_no_such_call(
        #[case] call: c_long,
        #[case] arguments: [c_long; 4],
    ) {
        let [vcpu, event_loop, ..] = statuses_after(&Uses::default(), call, arguments);

        assert_eq!((vcpu, event_loop), (159, 159));
    }
}
