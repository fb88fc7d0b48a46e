// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtual CPUs: what each looks like to the guest ([`cpuid`], [`msrs`]), how it starts ([`registers`]), how it runs
//! ([`run`]), on which thread ([`thread`]), and how that thread is called back from the guest ([`kick`]).

mod cpuid;
mod kick;
mod msrs;
mod registers;
mod run;
mod thread;

use coracle_boot::StartState;
use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::KvmError;
use crate::machine::{Machine, failed_to};

pub use run::VcpuError;

pub(crate) use cpuid::supported;
pub(crate) use kick::Kicks;
pub(crate) use thread::{Context, VcpuThread};

/// A vCPU that does not run yet.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: u8,
    fd: VcpuFd,
}

impl Vcpu {
    /// Adds vCPU `index` of `count` to `machine`. Until another vCPU wakes it, any but the first waits.
    pub(crate) fn new(
        machine: &Machine,
        index: u8,
        count: u8,
        supported: &CpuId,
    ) -> Result<Self, KvmError> {
        let fd = machine.create_vcpu(index)?;
        let cpuid = cpuid::for_vcpu(supported, index, count)?;
        fd.set_cpuid2(&cpuid)
            .map_err(failed_to(format!("set the CPUID of vCPU {index}")))?;
        msrs::set(&fd)?;
        registers::set_local_interrupts(&fd)?;
        Ok(Self { index, fd })
    }

    /// Sets the registers of the first vCPU.
    pub(crate) fn set_start(&self, start: &StartState) -> Result<(), KvmError> {
        registers::set_start(&self.fd, start)
    }
}
