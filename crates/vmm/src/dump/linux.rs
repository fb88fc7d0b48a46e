// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a Linux kernel has guest memory in its own address space.
//!
//! A core of a whole machine tells physical addresses, but gdb looks for those of symbols, and `crash` learns from them
//! how far a kernel was moved. A kernel that starts by PVH is not moved, nor is its map of all memory; so two places are
//! looked at, and named if the guest's page tables agree (Linux, `Documentation/arch/x86/x86_64/mm.rst`).

use coracle_memory::{GuestAddress, GuestMemory};
use kvm_bindings::kvm_sregs;

use crate::paging::{CR4_FIVE_LEVELS, translate};
use crate::vcpu::Registers;

/// The kernel's code and data.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Its length: modules follow.
const IMAGE_SIZE: u64 = 1 << 30;
/// All of physical memory, with page tables of four levels.
const DIRECT: u64 = 0xffff_8880_0000_0000;
/// The same with five.
const DIRECT_OF_FIVE_LEVELS: u64 = 0xff11_0000_0000_0000;
/// A physical address that both have: `CONFIG_PHYSICAL_START`, where kernels are loaded.
const SAMPLE: u64 = 0x100_0000;
/// The bit of CR3 by which the page tables of programs differ from the kernel's (page table isolation).
const USER_TABLES: u64 = 1 << 12;

/// A part of physical memory, from its beginning on, in the kernel's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) linear: u64,
    pub(super) size: u64,
}

/// The windows of the kernel that runs on one of these vCPUs.
pub(super) fn windows(memory: &GuestMemory, vcpus: &[Registers]) -> Vec<Window> {
    let tables: Vec<_> = vcpus
        .iter()
        .flat_map(|registers| {
            let special = registers.special;
            let kernel = kvm_sregs {
                cr3: special.cr3 & !USER_TABLES,
                ..special
            };
            [special, kernel]
        })
        .collect();
    let is_mapped = |window: &Window| {
        let linear = window.linear.checked_add(SAMPLE);
        linear.is_some_and(|linear| {
            tables.iter().any(|registers| {
                let found = translate(memory, registers, linear);
                found.is_some_and(|(address, _)| address == GuestAddress(SAMPLE))
            })
        })
    };
    let has_five_levels = tables.iter().any(|table| table.cr4 & CR4_FIVE_LEVELS != 0);
    let direct = match has_five_levels {
        true => DIRECT_OF_FIVE_LEVELS,
        false => DIRECT,
    };
    [(IMAGE, IMAGE_SIZE), (direct, u64::MAX - direct)]
        .into_iter()
        .map(|(linear, size)| Window { linear, size })
        .filter(is_mapped)
        .collect()
}
