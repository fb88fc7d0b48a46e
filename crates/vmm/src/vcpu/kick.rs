// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calling a vCPU's thread back from the guest.
//!
//! A signal makes `KVM_RUN` return, but only if it comes while the thread is in it. So the handler, which runs on the
//! vCPU's own thread, also sets `immediate_exit` in the vCPU's shared page: a signal that comes a moment too early makes
//! the next `KVM_RUN` return at once.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that runs on this thread. Constant at first and without a destructor, so that
    /// a signal handler can read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn leave_guest(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    IMMEDIATE_EXIT.with(|flag| {
        let flag = flag.get();
        if !flag.is_null() {
            // SAFETY: the pointer is set only while the vCPU's shared page is mapped (see `Target`), on this very
            // thread. The page is shared with the kernel, hence volatile.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// Proof that the signal handler is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kicks(());

impl Kicks {
    /// Installs the handler for this process.
    pub(crate) fn install() -> Result<Self, errno::Error> {
        register_signal_handler(SIGRTMIN(), leave_guest)?;
        Ok(Self(()))
    }

    /// Makes the vCPU on `thread` leave the guest. A thread that has ended is left alone.
    pub(super) fn kick<T>(self, thread: &JoinHandle<T>) {
        // Fails only for a thread that has ended, or for a signal number that `install` would have refused.
        let _ = thread.kill(SIGRTMIN());
    }
}

/// Makes the calling thread the one that a kick calls back from `fd`, for as long as this lives.
pub(super) struct Target<'fd> {
    fd: &'fd mut VcpuFd,
}

impl<'fd> Target<'fd> {
    pub(super) fn new(fd: &'fd mut VcpuFd) -> Self {
        let flag = &raw mut fd.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(flag);
        Self { fd }
    }

    pub(super) fn fd(&mut self) -> &mut VcpuFd {
        self.fd
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
