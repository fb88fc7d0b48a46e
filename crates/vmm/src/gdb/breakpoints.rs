// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the guest is to stop: addresses in the CPU's four debug registers, and instructions in guest memory that were
//! replaced by a breakpoint. Registers: Intel SDM volume 3, chapter 18.2.

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use gdbstub::target::ext::breakpoints::WatchKind;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};

/// `int3`.
const INT3: u8 = 0xcc;
/// The exception of debug registers and single steps.
const DEBUG_EXCEPTION: u32 = 1;
/// The exception of `int3`.
const BREAKPOINT_EXCEPTION: u32 = 3;
/// DR6: a single step was made.
const DR6_STEP: u64 = 1 << 14;
/// DR7: the bit that always reads as one.
const DR7_FIXED: u64 = 1 << 10;
/// Software breakpoints that can be set at a time.
const MOST_SOFTWARE: usize = 1024;

/// What a debug register waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The instruction there is about to run.
    Execute,
    /// 1, 2, 4 or 8 bytes there were written, or read too. There is no register for reads alone.
    Data { length: u64, kind: WatchKind },
}

impl Access {
    /// The type and length fields of DR7.
    fn fields(self) -> Option<u64> {
        match self {
            Self::Execute => Some(0),
            Self::Data { length, kind } => {
                let length = match length {
                    1 => 0b00,
                    2 => 0b01,
                    4 => 0b11,
                    8 => 0b10,
                    _ => return None,
                };
                let kind = match kind {
                    WatchKind::Write => 0b01,
                    WatchKind::Read | WatchKind::ReadWrite => 0b11,
                };
                Some(length << 2 | kind)
            }
        }
    }

    /// The CPU compares only the bits above the length.
    fn is_aligned(self, address: u64) -> bool {
        match self {
            Self::Execute => true,
            Self::Data { length, .. } => address.is_multiple_of(length),
        }
    }
}

/// Why a vCPU left the guest for the debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Software,
    Hardware(Access, u64),
    Step,
    /// An `int3` of the guest's own.
    Guest,
}

#[derive(Debug)]
struct Software {
    linear: u64,
    physical: GuestAddress,
    original: u8,
}

/// All breakpoints of a machine.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    hardware: [Option<(u64, Access)>; 4],
    software: Vec<Software>,
}

impl Breakpoints {
    /// Uses a debug register. Whether one was free and can do this.
    pub(super) fn add_hardware(&mut self, address: u64, access: Access) -> bool {
        if access.fields().is_none() || !access.is_aligned(address) {
            return false;
        }
        let free = self.hardware.iter_mut().find(|slot| slot.is_none());
        free.map(|slot| *slot = Some((address, access))).is_some()
    }

    pub(super) fn remove_hardware(&mut self, address: u64, access: Access) -> bool {
        let used = self
            .hardware
            .iter_mut()
            .find(|slot| **slot == Some((address, access)));
        used.map(|slot| *slot = None).is_some()
    }

    /// Puts `int3` at `physical`. Whether there was room for one more.
    pub(super) fn add_software(
        &mut self,
        memory: &GuestMemory,
        linear: u64,
        physical: GuestAddress,
    ) -> Result<bool, AccessError> {
        if self.software.len() == MOST_SOFTWARE {
            return Ok(false);
        }
        let mut original = [0];
        memory.read(physical, &mut original)?;
        self.hide(physical, &mut original);
        memory.write(physical, &[INT3])?;
        self.software.push(Software {
            linear,
            physical,
            original: original[0],
        });
        Ok(true)
    }

    /// Puts back what was at `linear`. Whether there was a breakpoint.
    pub(super) fn remove_software(&mut self, memory: &GuestMemory, linear: u64) -> bool {
        let Some(at) = self
            .software
            .iter()
            .position(|known| known.linear == linear)
        else {
            return false;
        };
        let removed = self.software.remove(at);
        let is_shared = self
            .software
            .iter()
            .any(|known| known.physical == removed.physical);
        if !is_shared {
            // It was there when the breakpoint was set, and memory does not go away.
            let _ = memory.write(removed.physical, &[removed.original]);
        }
        true
    }

    /// Removes all of them.
    pub(super) fn clear(&mut self, memory: &GuestMemory) {
        self.hardware = Default::default();
        while let Some(last) = self.software.last() {
            let linear = last.linear;
            self.remove_software(memory, linear);
        }
    }

    /// Shows in `data`, which was read at `physical`, what breakpoints replaced.
    pub(super) fn hide(&self, physical: GuestAddress, data: &mut [u8]) {
        for known in &self.software {
            if let Some(byte) = at(physical, known.physical).and_then(|at| data.get_mut(at)) {
                *byte = known.original;
            }
        }
    }

    /// Writes `data` to guest memory, and keeps the breakpoints there.
    pub(super) fn write(
        &mut self,
        memory: &GuestMemory,
        physical: GuestAddress,
        data: &[u8],
    ) -> Result<(), AccessError> {
        memory.write(physical, data)?;
        for known in &mut self.software {
            if let Some(byte) = at(physical, known.physical).and_then(|at| data.get(at)) {
                known.original = *byte;
                memory.write(known.physical, &[INT3])?;
            }
        }
        Ok(())
    }

    /// What KVM is to do for a vCPU that goes on.
    pub(super) fn control(&self, step: bool, block_interrupts: bool) -> kvm_guest_debug {
        let mut debug = kvm_guest_debug::default();
        let mut control = 0;
        if step {
            control |= KVM_GUESTDBG_SINGLESTEP;
            if block_interrupts {
                control |= KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        if !self.software.is_empty() {
            control |= KVM_GUESTDBG_USE_SW_BP;
        }
        let mut enabled = 0;
        for (index, slot) in self.hardware.iter().enumerate() {
            let Some((address, access)) = slot else {
                continue;
            };
            debug.arch.debugreg[index] = *address;
            // Global enable, and the fields of the register; checked when it was added.
            let fields = access.fields().unwrap_or_default();
            enabled |= 0b10 << (2 * index) | fields << (16 + 4 * index);
        }
        if enabled != 0 {
            control |= KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = enabled | DR7_FIXED;
        }
        if control != 0 {
            debug.control = control | KVM_GUESTDBG_ENABLE;
        }
        debug
    }

    /// What an exit to the debugger is about.
    pub(super) fn cause(&self, exit: &kvm_debug_exit_arch) -> Cause {
        match exit.exception {
            BREAKPOINT_EXCEPTION => {
                let known = self.software.iter().any(|known| known.linear == exit.pc);
                if known { Cause::Software } else { Cause::Guest }
            }
            DEBUG_EXCEPTION if exit.dr6 & DR6_STEP == 0 => self
                .hardware
                .iter()
                .enumerate()
                .filter(|(index, _)| exit.dr6 >> index & 1 != 0)
                .find_map(|(_, slot)| {
                    slot.map(|(address, access)| Cause::Hardware(access, address))
                })
                .unwrap_or(Cause::Step),
            _ => Cause::Step,
        }
    }
}

/// The place of `address` in what begins at `start`.
fn at(start: GuestAddress, address: GuestAddress) -> Option<usize> {
    let offset = address.checked_offset_from(start)?;
    usize::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HERE: GuestAddress = GuestAddress(0x1000);

    fn memory() -> GuestMemory {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(1 << 20)).unwrap();
        memory.write(HERE, b"code").unwrap();
        memory
    }

    fn content(memory: &GuestMemory) -> [u8; 4] {
        let mut found = [0; 4];
        memory.read(HERE, &mut found).unwrap();
        found
    }

    const WRITES: Access = Access::Data {
        length: 4,
        kind: WatchKind::Write,
    };

    #[test]
    fn debug_registers_are_four() {
        let mut breakpoints = Breakpoints::default();

        let added: Vec<_> = (0..5)
            .map(|address| breakpoints.add_hardware(address, Access::Execute))
            .collect();

        assert_eq!(added, [true, true, true, true, false]);
        assert!(breakpoints.remove_hardware(2, Access::Execute));
        assert!(!breakpoints.remove_hardware(2, Access::Execute));
        assert!(breakpoints.add_hardware(9, Access::Execute));
    }

    #[rstest]
    #[case::three_bytes(0x1000, 3)]
    #[case::nothing(0x1000, 0)]
    #[case::sixteen_bytes(0x1000, 16)]
    #[case::not_aligned(0x1002, 4)]
    fn watchpoint_that_no_register_can_do_is_refused(#[case] address: u64, #[case] length: u64) {
        let kind = WatchKind::Write;

        let added = Breakpoints::default().add_hardware(address, Access::Data { length, kind });

        assert!(!added);
    }

    #[test]
    fn debug_registers_are_set_as_the_cpu_wants_them() {
        let mut breakpoints = Breakpoints::default();
        breakpoints.add_hardware(0xabc, Access::Execute);
        breakpoints.add_hardware(0x1000, WRITES);

        let debug = breakpoints.control(false, false);

        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(debug.arch.debugreg[..2], [0xabc, 0x1000]);
        assert_eq!(debug.arch.debugreg[7], 0x00d0_040a);
    }

    #[test]
    fn without_a_breakpoint_there_is_no_debugging() {
        assert_eq!(Breakpoints::default().control(false, true).control, 0);
    }

    #[rstest]
    #[case(false, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)]
    #[case(true, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)]
    fn step_is_made_without_interrupts_where_they_can_be_blocked(
        #[case] block: bool,
        #[case] expected: u32,
    ) {
        assert_eq!(
            Breakpoints::default().control(true, block).control,
            expected
        );
    }

    #[rstest]
    #[case::first_register(1, 0b0001, 0, Cause::Hardware(Access::Execute, 0xabc))]
    #[case::second_register(1, 0b0010, 0, Cause::Hardware(WRITES, 0x1000))]
    #[case::register_that_is_not_used(1, 0b0100, 0, Cause::Step)]
    #[case::step(1, DR6_STEP, 0, Cause::Step)]
    #[case::software(3, 0, 0x1_1001, Cause::Software)]
    #[case::the_guests_own(3, 0, 0x1_1002, Cause::Guest)]
    fn cause_is_told(
        #[case] exception: u32,
        #[case] dr6: u64,
        #[case] pc: u64,
        #[case] expected: Cause,
    ) {
        let mut breakpoints = Breakpoints::default();
        breakpoints.add_hardware(0xabc, Access::Execute);
        breakpoints.add_hardware(0x1000, WRITES);
        breakpoints
            .add_software(&memory(), 0x1_1001, GuestAddress(0x1001))
            .unwrap();

        let cause = breakpoints.cause(&kvm_debug_exit_arch {
            exception,
            dr6,
            pc,
            ..Default::default()
        });

        assert_eq!(cause, expected);
    }

    #[test]
    fn software_breakpoint_is_in_memory_and_not_seen() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());

        breakpoints
            .add_software(&memory, 0x1_1001, GuestAddress(0x1001))
            .unwrap();

        let mut seen = content(&memory);
        assert_eq!(&seen, b"c\xccde");
        breakpoints.hide(HERE, &mut seen);
        assert_eq!(&seen, b"code");
        assert!(breakpoints.remove_software(&memory, 0x1_1001));
        assert_eq!(&content(&memory), b"code");
    }

    #[test]
    fn breakpoint_stays_when_its_place_is_written_to() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        breakpoints
            .add_software(&memory, 0x1_1001, GuestAddress(0x1001))
            .unwrap();

        breakpoints.write(&memory, HERE, b"CODE").unwrap();

        assert_eq!(&content(&memory), b"C\xccDE");
        breakpoints.clear(&memory);
        assert_eq!(&content(&memory), b"CODE");
    }

    #[rstest]
    #[case(0x1_1001, 0x2_1001)]
    #[case(0x2_1001, 0x1_1001)]
    fn two_addresses_of_one_place_are_two_breakpoints(#[case] first: u64, #[case] second: u64) {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        for linear in [0x1_1001, 0x2_1001] {
            breakpoints
                .add_software(&memory, linear, GuestAddress(0x1001))
                .unwrap();
        }

        breakpoints.remove_software(&memory, first);
        let with_one = content(&memory);
        breakpoints.remove_software(&memory, second);

        assert_eq!((&with_one, &content(&memory)), (b"c\xccde", b"code"));
    }

    #[test]
    fn breakpoint_where_no_memory_is_is_refused() {
        let mut breakpoints = Breakpoints::default();

        let added = breakpoints.add_software(&memory(), 0, GuestAddress(1 << 40));

        assert!(added.is_err());
        assert_eq!(breakpoints.control(false, false).control, 0);
    }
}
