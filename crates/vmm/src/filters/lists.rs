// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each kind of thread may call: what every one needs, what its work takes, and what the parts of this very machine
//! add to that.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::c_long;

use crate::Config;
use coracle_seccomp::Call;

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
/// `_IOW(KVMIO, 0x9b, struct kvm_guest_debug)`: a vCPU's breakpoints.
const KVM_SET_GUEST_DEBUG: u32 = 0x4048_ae9b;
/// Changing a vCPU's registers: `KVM_SET_REGS`, `KVM_SET_SREGS`, `KVM_GET_FPU`, `KVM_SET_FPU`.
const KVM_WRITE: [u32; 4] = [0x4090_ae82, 0x4138_ae84, 0x81a0_ae8c, 0x41a0_ae8d];
/// Makes a socket non-blocking.
const FIONBIO: u32 = 0x5421;

/// Memory, locks, descriptors that are open, random numbers, and ends.
const EVERY_THREAD: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Waiting for events.
const EVENTS: &[c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
];

/// Keeping a log within its limit.
const LOG: [c_long; 3] = [libc::SYS_ftruncate, libc::SYS_pread64, libc::SYS_pwrite64];

/// Starting and stopping a back end, and giving up one that does not take part.
const BACK_END: &[c_long] = &[libc::SYS_sendmsg, libc::SYS_shutdown];

/// Activating the vsock device.
const VSOCK_START: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_create,
];

/// The host's side of vsock connections, and removing the name of the device's own socket.
const VSOCK: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Requests and their answers, and a dump into a file that comes with one.
const CONTROL: &[c_long] = &[
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pwrite64,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
];

/// A disk's I/O.
const DISK: &[c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
];

/// A debugger's connection.
const DEBUGGER: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
];

/// What a machine has that takes system calls of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    /// The descriptors of its logs.
    pub(crate) logs: Vec<RawFd>,
    pub(crate) vsock: bool,
    pub(crate) nets: bool,
    /// Devices that other processes serve.
    pub(crate) back_ends: bool,
    pub(crate) gdb: bool,
    /// A process that makes requests.
    pub(crate) control: bool,
}

impl Uses {
    /// Of a machine that nobody controls yet.
    pub(crate) fn of(config: &Config<OwnedFd>) -> Self {
        let logs = config.console_log.iter().chain(&config.serial_log);
        Self {
            logs: logs.map(AsRawFd::as_raw_fd).collect(),
            vsock: config.vsock.is_some(),
            nets: !config.nets.is_empty(),
            back_ends: !config.fs.is_empty() || !config.vhost_user.is_empty(),
            gdb: config.gdb.is_some(),
            control: false,
        }
    }
}

/// Activating a device when its driver is ready, and output to the serial port.
pub(super) fn vcpu(uses: &Uses) -> List {
    let mut list = List::new();
    let mut ioctls = vec![KVM_RUN, KVM_KVMCLOCK_CTRL];
    if uses.vsock {
        list.allow(VSOCK_START);
    }
    if uses.back_ends {
        list.allow(BACK_END);
    }
    if uses.gdb {
        ioctls.push(KVM_SET_GUEST_DEBUG);
    }
    list.allow_logs(uses);
    list.allow_with(libc::SYS_ioctl, 1, &ioctls);
    list
}

/// The queues of all devices but disks, and requests.
pub(super) fn event_loop(uses: &Uses) -> List {
    let mut list = List::new();
    let (mut ioctls, mut statx) = (Vec::new(), Vec::new());
    list.allow(EVENTS);
    // Straight into the buffers of a driver, as `read` would do.
    list.allow(&[libc::SYS_readv]);
    if uses.vsock {
        list.allow(VSOCK);
        list.allow_with(libc::SYS_socket, 0, &[word(libc::AF_UNIX)]);
        ioctls.push(FIONBIO);
        // Whether the name is that of its own socket.
        statx.push(word(libc::AT_SYMLINK_NOFOLLOW));
    }
    if uses.nets {
        ioctls.push(TUNSETOFFLOAD);
    }
    if uses.control {
        list.allow(CONTROL);
        ioctls.extend(KVM_READ);
        // Of a descriptor only.
        statx.push(word(libc::AT_EMPTY_PATH));
    }
    list.allow_logs(uses);
    list.allow_with(libc::SYS_ioctl, 1, &ioctls);
    list.allow_with(libc::SYS_statx, 2, &statx);
    list
}

/// A disk's queue.
pub(super) fn disk() -> List {
    let mut list = List::new();
    list.allow(EVENTS);
    list.allow(DISK);
    list.allow_with(libc::SYS_ioctl, 1, &[BLKDISCARD]);
    list
}

/// All that is behind a debugger's connection.
pub(super) fn debugger() -> List {
    let mut list = List::new();
    list.allow(DEBUGGER);
    let ioctls = [&KVM_READ[..], &KVM_WRITE, &[KVM_SET_GUEST_DEBUG]].concat();
    list.allow_with(libc::SYS_ioctl, 1, &ioctls);
    list
}

/// The calls of one kind of thread.
pub(super) struct List(BTreeMap<c_long, Call>);

impl List {
    /// What every thread needs.
    fn new() -> Self {
        let mut list = Self(BTreeMap::new());
        list.allow(EVERY_THREAD);
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            let restricted = Call::without(call, 2, word(libc::PROT_EXEC));
            list.0.insert(call, restricted);
        }
        // Duplicating a descriptor, and what a debug build does before it closes one.
        let commands = [word(libc::F_DUPFD_CLOEXEC), word(libc::F_GETFD)];
        list.allow_with(libc::SYS_fcntl, 1, &commands);
        // Kicks of vCPUs, and a panic's abort.
        list.allow_with(libc::SYS_tgkill, 0, &[std::process::id()]);
        list
    }

    fn allow(&mut self, calls: &[c_long]) {
        let calls = calls.iter().map(|call| (*call, Call::any(*call)));
        self.0.extend(calls);
    }

    /// Allows `call` with these values of an argument. One that is allowed already stays as it is.
    fn allow_with(&mut self, call: c_long, argument: u32, values: &[u32]) {
        if !values.is_empty() {
            let restricted = Call::with(call, argument, values);
            self.0.entry(call).or_insert(restricted);
        }
    }

    /// Lets the machine's logs be kept within their limit; no other file, unless the same calls are allowed already, as they
    /// are for dumps on the event loop.
    fn allow_logs(&mut self, uses: &Uses) {
        let logs: Vec<_> = uses.logs.iter().map(|log| log.unsigned_abs()).collect();
        for call in LOG {
            self.allow_with(call, 0, &logs);
        }
    }

    pub(super) fn into_calls(self) -> Vec<Call> {
        self.0.into_values().collect()
    }
}

/// A constant of C, none of which is negative here.
fn word(constant: libc::c_int) -> u32 {
    constant.unsigned_abs()
}
