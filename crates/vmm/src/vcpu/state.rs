// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a vCPU stands: all its registers for a dump, and the few that tell a guest that hangs from one that idles.

use std::fmt;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs,
};
use serde::{Deserialize, Serialize};

use super::Vcpu;
use crate::KvmError;
use crate::machine::failed_to;

/// `IA32_KERNEL_GS_BASE`: the kernel's per-CPU data while user code runs.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Control register 0: protected mode.
const CR0_PROTECTED: u64 = 1;
/// `IA32_EFER`: long mode is active.
const EFER_LONG_ACTIVE: u64 = 1 << 10;
/// `RFLAGS`: maskable interrupts are taken.
const RFLAGS_INTERRUPT: u64 = 1 << 9;

/// Where a vCPU stands, for telling what a guest that does not answer is doing.
///
/// A guest that idles has all its vCPUs [halted](Self::activity) with interrupts enabled. One that hangs for good has
/// a vCPU halted without them, or one that runs at about the same address whenever it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VcpuState {
    /// What it does.
    pub activity: Activity,
    /// The address of its next instruction.
    pub rip: u64,
    /// Whether it takes maskable interrupts.
    pub interrupts_enabled: bool,
    /// How it reads instructions.
    pub mode: Mode,
    /// Its privilege level: 0 for a kernel, 3 for programs.
    pub privilege: u8,
}

/// What a vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activity {
    /// It runs.
    Running,
    /// It halted, until an interrupt.
    Halted,
    /// No other vCPU has started it.
    Waiting,
}

/// How a vCPU reads instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// 16 bits, as after a reset.
    Real,
    /// Protected mode of 16 or 32 bits.
    Protected,
    /// Protected mode of 16 or 32 bits under a kernel of 64.
    Compatibility,
    /// 64 bits.
    Long,
}

/// All registers that a debugger asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Registers {
    pub(crate) general: kvm_regs,
    pub(crate) special: kvm_sregs,
    /// `IA32_KERNEL_GS_BASE`.
    pub(crate) kernel_gs_base: u64,
}

impl Registers {
    fn mode(&self) -> Mode {
        let cs_is_long = self.special.cs.l != 0;
        match self.special.efer & EFER_LONG_ACTIVE != 0 {
            true if cs_is_long => Mode::Long,
            true => Mode::Compatibility,
            false if self.special.cr0 & CR0_PROTECTED != 0 => Mode::Protected,
            false => Mode::Real,
        }
    }

    fn state(&self, activity: Activity) -> VcpuState {
        VcpuState {
            activity,
            rip: self.general.rip,
            interrupts_enabled: self.general.rflags & RFLAGS_INTERRUPT != 0,
            mode: self.mode(),
            privilege: self.special.ss.dpl,
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Halted => "halted",
            Self::Waiting => "waiting to be started",
        })
    }
}

impl Activity {
    fn of(state: kvm_mp_state) -> Self {
        match state.mp_state {
            KVM_MP_STATE_RUNNABLE => Self::Running,
            KVM_MP_STATE_HALTED => Self::Halted,
            _ => Self::Waiting,
        }
    }
}

impl Vcpu {
    /// Where it stands. It must be out of the guest.
    pub(crate) fn state(&self) -> Result<VcpuState, KvmError> {
        let activity = self
            .fd
            .get_mp_state()
            .map_err(failed_to("say what a vCPU does"))?;
        Ok(self.basic_registers()?.state(Activity::of(activity)))
    }

    /// Its registers. It must be out of the guest.
    pub(crate) fn registers(&self) -> Result<Registers, KvmError> {
        let failed = || failed_to(format!("read the register {KERNEL_GS_BASE:#x}"));
        let wanted = kvm_msr_entry {
            index: KERNEL_GS_BASE,
            ..Default::default()
        };
        let too_many = |_| vmm_sys_util::errno::Error::new(libc::E2BIG);
        let mut msrs = Msrs::from_entries(&[wanted])
            .map_err(too_many)
            .map_err(failed())?;
        self.fd.get_msrs(&mut msrs).map_err(failed())?;
        Ok(Registers {
            kernel_gs_base: msrs.as_slice().first().map_or(0, |entry| entry.data),
            ..self.basic_registers()?
        })
    }

    fn basic_registers(&self) -> Result<Registers, KvmError> {
        Ok(Registers {
            general: self
                .fd
                .get_regs()
                .map_err(failed_to("read the general registers"))?,
            special: self
                .fd
                .get_sregs()
                .map_err(failed_to("read the segment registers"))?,
            kernel_gs_base: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::after_a_reset(0x10, 0, false, Mode::Real)]
    #[case::as_a_kernel_starts(0x11, 0, false, Mode::Protected)]
    #[case::program_of_32_bits(0x8000_0011, 0x500, false, Mode::Compatibility)]
    #[case::of_64_bits(0x8000_0011, 0x500, true, Mode::Long)]
    #[case::long_mode_enabled_only(0x11, 0x100, false, Mode::Protected)]
    fn mode_is_that_of_the_control_registers(
        #[case] cr0: u64,
        #[case] efer: u64,
        #[case] long: bool,
        #[case] expected: Mode,
    ) {
        let mut registers = Registers::default();
        registers.special.cr0 = cr0;
        registers.special.efer = efer;
        registers.special.cs.l = long.into();

        assert_eq!(registers.mode(), expected);
    }

    #[rstest]
    #[case(0x202, true)]
    #[case(0x002, false)]
    fn interrupts_are_enabled_by_their_flag(#[case] rflags: u64, #[case] expected: bool) {
        let mut registers = Registers::default();
        registers.general.rflags = rflags;

        let state = registers.state(Activity::Halted);

        assert_eq!(state.interrupts_enabled, expected);
    }
}
