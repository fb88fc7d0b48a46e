// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Running guest code, and what is done each time it comes back.

use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::Exit;
use crate::bus::Buses;

/// How often a held vCPU may come back from an instruction that it has begun. One that reads or writes a device has done
/// so after a few times; a repeated one may go on for ever, and is held in its middle.
const MOST_RETURNS: usize = 64;

/// Why a vCPU cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// KVM's own failure.
    #[error("KVM cannot run it")]
    Run(#[source] errno::Error),
    /// The hardware refused the state of the vCPU.
    #[error("the hardware does not enter the guest on CPU {cpu}: reason {reason:#x}")]
    Entry {
        /// The hardware's reason.
        reason: u64,
        /// The host's CPU.
        cpu: u32,
    },
    /// KVM gave up, mostly on an instruction that it cannot emulate.
    #[error("KVM met an internal error, number {suberror}")]
    Internal {
        /// `KVM_INTERNAL_ERROR_*`: 1 for an instruction that it cannot emulate.
        suberror: u32,
    },
    /// An exit that this machine never asked for.
    #[error("KVM returned for an unexpected reason: {reason}")]
    Unexpected {
        /// The exit.
        reason: String,
    },
}

/// Why a vCPU is out of the guest.
#[derive(Debug)]
pub(super) enum Left {
    /// Somebody holds it.
    Held,
    /// The machine ended.
    Ended(Exit),
    /// It met a breakpoint or made its step.
    Debug(kvm_debug_exit_arch),
}

/// What one entry into the guest came to.
enum Return {
    /// Something was done for the guest, which may go on.
    Served,
    /// It was called back.
    Interrupted,
    Left(Left),
}

/// Runs the guest until it leaves, or until `holders` is not 0 and the thread kicked.
pub(super) fn run(fd: &mut VcpuFd, buses: &Buses, holders: &AtomicU8) -> Result<Left, VcpuError> {
    while holders.load(Ordering::Acquire) == 0 {
        if let Return::Left(left) = run_once(fd, buses)? {
            return Ok(left);
        }
    }
    finish_instruction(fd, buses)
}

/// KVM completes an access to a device when the guest is entered again. Only then do the registers tell a state
/// between two instructions.
fn finish_instruction(fd: &mut VcpuFd, buses: &Buses) -> Result<Left, VcpuError> {
    for _ in 0..MOST_RETURNS {
        // Completes, and does not enter.
        fd.set_kvm_immediate_exit(1);
        match run_once(fd, buses)? {
            Return::Served => {}
            Return::Interrupted => break,
            Return::Left(left) => return Ok(left),
        }
    }
    fd.set_kvm_immediate_exit(0);
    Ok(Left::Held)
}

fn run_once(fd: &mut VcpuFd, buses: &Buses) -> Result<Return, VcpuError> {
    let ended = |exit| Ok(Return::Left(Left::Ended(exit)));
    match fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => buses.write_port(port, data),
        Ok(VcpuExit::IoIn(port, data)) => buses.read_port(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => buses.write_mmio(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => buses.read_mmio(address, data),
        Ok(VcpuExit::Hlt) => return ended(Exit::Halted),
        Ok(VcpuExit::Shutdown) => return ended(Exit::TripleFault),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return ended(Exit::Shutdown),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return ended(Exit::Reset),
        Ok(VcpuExit::Debug(debug)) => return Ok(Return::Left(Left::Debug(debug))),
        Ok(VcpuExit::FailEntry(reason, cpu)) => return Err(VcpuError::Entry { reason, cpu }),
        Ok(VcpuExit::InternalError) => {
            return Err(VcpuError::Internal {
                suberror: internal_suberror(fd),
            });
        }
        Ok(VcpuExit::Intr) => return Ok(Return::Interrupted),
        Ok(exit) => {
            return Err(VcpuError::Unexpected {
                reason: format!("{exit:?}"),
            });
        }
        Err(error) => match error.errno() {
            // A kick, or a signal for the process; the former left a mark that would end each run from now on.
            libc::EINTR => {
                fd.set_kvm_immediate_exit(0);
                return Ok(Return::Interrupted);
            }
            libc::EAGAIN => {}
            _ => return Err(VcpuError::Run(error)),
        },
    }
    Ok(Return::Served)
}

fn internal_suberror(fd: &mut VcpuFd) -> u32 {
    // SAFETY: KVM fills this member of the union when it returns for an internal error, and all its values are valid.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
}
