// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A start state in KVM's registers, and the local APIC as firmware leaves it.

use coracle_boot::{Segment, StartState};
use kvm_bindings::{kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::KvmError;
use crate::machine::failed_to;

/// Offset of the local APIC's register for its pin LINT0.
const LINT0: usize = 0x350;
/// Offset of the local APIC's register for its pin LINT1.
const LINT1: usize = 0x360;
/// Delivery mode of an external interrupt controller.
const EXTERNAL_INTERRUPT: u8 = 7;
/// Delivery mode of a non-maskable interrupt.
const NON_MASKABLE: u8 = 4;

/// Sets the registers that `start` names.
pub(super) fn set_start(fd: &VcpuFd, start: &StartState) -> Result<(), KvmError> {
    let mut special = fd
        .get_sregs()
        .map_err(failed_to("read the segment registers"))?;
    fill_special(&mut special, start);
    fd.set_sregs(&special)
        .map_err(failed_to("set the segment registers"))?;
    fd.set_regs(&kvm_regs {
        rip: start.rip,
        rbx: start.rbx,
        rflags: start.rflags,
        ..Default::default()
    })
    .map_err(failed_to("set the general registers"))
}

fn fill_special(special: &mut kvm_sregs, start: &StartState) {
    let data = segment(&start.data);
    special.cs = segment(&start.cs);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.tr = segment(&start.tr);
    special.cr0 = start.cr0;
    special.cr4 = start.cr4;
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: segment.big.into(),
        s: segment.code_or_data.into(),
        l: 0,
        g: segment.granular.into(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Connects LINT0 to the PIC and LINT1 to the non-maskable interrupt, as the MultiProcessor Specification (3.6.2) has
/// them after power-on.
pub(super) fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = fd.get_lapic().map_err(failed_to("read the local APIC"))?;
    set_delivery_mode(&mut apic, LINT0, EXTERNAL_INTERRUPT);
    set_delivery_mode(&mut apic, LINT1, NON_MASKABLE);
    fd.set_lapic(&apic).map_err(failed_to("set the local APIC"))
}

/// Sets bits 8 to 10 of the 32-bit register at `offset`: the low bits of its second byte.
fn set_delivery_mode(apic: &mut kvm_lapic_state, offset: usize, mode: u8) {
    let byte = &mut apic.regs[offset + 1];
    // The register file is an array of C's `char`, which is signed here.
    *byte = (byte.cast_unsigned() & !0b111 | mode).cast_signed();
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::masked_fixed(0x0001_0000, 0x0001_0700)]
    #[case::other_bits_kept(0x0001_f8ff, 0x0001_ffff)]
    fn delivery_mode_is_three_bits(#[case] before: u32, #[case] after: u32) {
        let mut apic = kvm_lapic_state::default();
        for (byte, value) in apic.regs[LINT0..].iter_mut().zip(before.to_le_bytes()) {
            *byte = value.cast_signed();
        }

        set_delivery_mode(&mut apic, LINT0, EXTERNAL_INTERRUPT);

        let found = [0, 1, 2, 3].map(|at| apic.regs[LINT0 + at].cast_unsigned());
        assert_eq!(u32::from_le_bytes(found), after);
    }
}
