// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where things stand in the first mebibyte of guest memory, and the fixed addresses that the ACPI tables name.
//!
//! The kernel loads at or above [`HIGH_RAM`]; the initrd stands at the top of the same memory region. Everything is a
//! guest-physical address unless it is called a port.

/// The PVH start information, followed by its module list.
pub const START_INFO: u64 = 0x6000;
/// The list of modules (the initrd is the only one) that the start information points to.
pub const MODULES: u64 = 0x6040;
/// The memory map that the start information points to.
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line in bytes: Linux keeps 2048 on x86, one of which is the terminating NUL.
pub const CMDLINE_MAX: usize = 2047;
/// End of the RAM below 1 MiB. What follows belonged to the BIOS and the video memory of a PC.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, the root pointer first, in what was the BIOS's read-only memory.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Start of the RAM above 1 MiB, and the lowest address of a kernel segment.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The registers of every CPU's local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The registers of the IOAPIC, whose inputs are the global system interrupts from 0 on.
pub const IO_APIC: u32 = 0xfec0_0000;

/// Port of the serial port COM1 (eight registers).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Port of the ACPI sleep control register: [`SLEEP_POWER_OFF`] turns the machine off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port of the ACPI sleep status register; it reads as 0.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Port of the ACPI reset register: [`RESET_VALUE`] resets the machine.
pub const RESET_PORT: u16 = 0x602;
/// What a guest writes to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of the soft-off state S5, as the DSDT gives it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What a guest writes to [`SLEEP_CONTROL_PORT`] to turn the machine off: `SLP_TYP` of S5 with `SLP_EN` (ACPI 6.5, 4.8.3.7).
pub const SLEEP_POWER_OFF: u8 = (SLEEP_TYPE_S5 << 2) | (1 << 5);
