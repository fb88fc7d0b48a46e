// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Running guest code, and what is done each time it comes back.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::Exit;
use crate::bus::Buses;

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
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// An exit that this machine never asked for.
    #[error("KVM returned for an unexpected reason: {reason}")]
    Unexpected {
        /// The exit.
        reason: String,
    },
}

/// Runs the guest until it ends, which gives the end, or until `stop` is set and the thread kicked, which gives none.
pub(super) fn run(
    fd: &mut VcpuFd,
    buses: &Buses,
    stop: &AtomicBool,
) -> Result<Option<Exit>, VcpuError> {
    while !stop.load(Ordering::Acquire) {
        if let Some(exit) = run_once(fd, buses)? {
            return Ok(Some(exit));
        }
    }
    Ok(None)
}

fn run_once(fd: &mut VcpuFd, buses: &Buses) -> Result<Option<Exit>, VcpuError> {
    match fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => buses.write_port(port, data),
        Ok(VcpuExit::IoIn(port, data)) => buses.read_port(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => buses.write_mmio(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => buses.read_mmio(address, data),
        Ok(VcpuExit::Hlt) => return Ok(Some(Exit::Halted)),
        Ok(VcpuExit::Shutdown) => return Ok(Some(Exit::TripleFault)),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Ok(Some(Exit::Shutdown));
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Some(Exit::Reset)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => return Err(VcpuError::Entry { reason, cpu }),
        Ok(VcpuExit::InternalError) => {
            return Err(VcpuError::Internal {
                suberror: internal_suberror(fd),
            });
        }
        Ok(VcpuExit::Intr) => {}
        Ok(exit) => {
            return Err(VcpuError::Unexpected {
                reason: format!("{exit:?}"),
            });
        }
        Err(error) => match error.errno() {
            // A kick, or a signal for the process; the former left a mark that would end each run from now on.
            libc::EINTR => fd.set_kvm_immediate_exit(0),
            libc::EAGAIN => {}
            _ => return Err(VcpuError::Run(error)),
        },
    }
    Ok(None)
}

fn internal_suberror(fd: &mut VcpuFd) -> u32 {
    // SAFETY: KVM fills this member of the union when it returns for an internal error, and all its values are valid.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
}
