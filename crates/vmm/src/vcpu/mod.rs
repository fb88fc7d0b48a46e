// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtual CPUs: what each looks like to the guest ([`cpuid`], [`msrs`]), how it starts ([`registers`]), how it runs
//! ([`run`]), where it stands ([`state`]), how its thread is called back from the guest ([`kick`]), and all of them
//! together ([`group`]).

mod cpuid;
mod group;
mod kick;
mod msrs;
mod registers;
mod run;
mod state;

use coracle_boot::StartState;
use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::KvmError;
use crate::machine::{Machine, failed_to};

pub use run::VcpuError;
pub use state::{Activity, Mode, VcpuState};

pub(crate) use cpuid::supported;
pub(crate) use group::{Context, Holder, VcpuGroup};
pub(crate) use kick::Kicks;
pub(crate) use state::Registers;

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
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
        // The others' local APICs are reset by what wakes them.
        if index == 0 {
            registers::set_local_interrupts(&fd)?;
        }
        Ok(Self { fd })
    }

    /// KVM's side of it.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Tells the guest, if it keeps time by KVM's clock, that it stood still: its watchdogs then find nobody guilty.
    pub(crate) fn forgive_lost_time(&self) {
        // A guest without that clock has nothing to be told by.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Sets the registers of the first vCPU.
    pub(crate) fn set_start(&self, start: &StartState) -> Result<(), KvmError> {
        registers::set_start(&self.fd, start)
    }
}
