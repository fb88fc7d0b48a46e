// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the debugger reads and changes of a vCPU.

use kvm_bindings::{kvm_guest_debug, kvm_sregs};

use super::registers::GuestRegisters;
use crate::KvmError;
use crate::machine::failed_to;
use crate::vcpu::Vcpu;

impl Vcpu {
    pub(super) fn special_registers(&self) -> Result<kvm_sregs, KvmError> {
        let registers = self.fd().get_sregs();
        registers.map_err(failed_to("read the segment registers"))
    }

    pub(super) fn debug_registers(&self) -> Result<GuestRegisters, KvmError> {
        let general = self.fd().get_regs();
        let fpu = self.fd().get_fpu();
        Ok(GuestRegisters::of_kvm(
            &general.map_err(failed_to("read the general registers"))?,
            &self.special_registers()?,
            &fpu.map_err(failed_to("read the floating point registers"))?,
        ))
    }

    /// Sets what is not as `before`.
    pub(super) fn set_debug_registers(
        &self,
        registers: &GuestRegisters,
        before: &GuestRegisters,
    ) -> Result<(), KvmError> {
        let general = registers.general();
        if general != before.general() {
            self.fd()
                .set_regs(&general)
                .map_err(failed_to("set the general registers"))?;
        }
        if registers.system != before.system {
            let mut special = self.special_registers()?;
            special.fs.base = registers.system.fs_base;
            special.gs.base = registers.system.gs_base;
            self.fd()
                .set_sregs(&special)
                .map_err(failed_to("set the segment registers"))?;
        }
        let floating = |registers: &GuestRegisters| {
            let core = registers.core.clone();
            (core.st, core.fpu, core.xmm, core.mxcsr)
        };
        if floating(registers) != floating(before) {
            let mut fpu = self
                .fd()
                .get_fpu()
                .map_err(failed_to("read the floating point registers"))?;
            registers.fill_fpu(&mut fpu);
            self.fd()
                .set_fpu(&fpu)
                .map_err(failed_to("set the floating point registers"))?;
        }
        Ok(())
    }

    pub(super) fn set_debug(&self, debug: &kvm_guest_debug) -> Result<(), KvmError> {
        self.fd()
            .set_guest_debug(debug)
            .map_err(failed_to("set breakpoints"))
    }

    /// Takes all breakpoints from it. A breakpoint of the guest's own, which KVM may have called it out for, it then meets
    /// as without a debugger.
    pub(crate) fn end_debugging(&self) -> Result<(), KvmError> {
        self.set_debug(&kvm_guest_debug::default())
    }
}
