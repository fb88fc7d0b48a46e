// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ACPI tables without which a stock kernel finds no IOAPIC: RSDP, XSDT, FADT (reduced
//! hardware), an empty DSDT, and a MADT with one processor.

use crate::memory::Memory;

/// Writes the tables from `at` on; returns the address of the RSDP.
pub fn write(memory: &Memory, at: u64) -> u64 {
    let dsdt_at = at + 0x100;
    let fadt_at = at + 0x200;
    let madt_at = at + 0x400;
    let xsdt_at = at + 0x500;

    memory.write(dsdt_at, &table(b"DSDT", 2, &[]));

    // Offsets are the specification's, less the 36 bytes of the header.
    let mut fadt = [0u8; 276 - 36];
    fadt[109 - 36] = 0b0000_0100; // boot architecture: no VGA to probe, no i8042 either
    fadt[112 - 36..116 - 36].copy_from_slice(&(1u32 << 20).to_le_bytes()); // reduced hardware
    fadt[131 - 36] = 5; // minor version
    fadt[140 - 36..148 - 36].copy_from_slice(&dsdt_at.to_le_bytes());
    memory.write(fadt_at, &table(b"FACP", 6, &fadt));

    let mut madt = Vec::new();
    madt.extend(0xfee0_0000u32.to_le_bytes()); // local APICs
    madt.extend(0u32.to_le_bytes()); // no 8259
    madt.extend([0, 8, 0, 0, 1, 0, 0, 0]); // processor 0, APIC 0, enabled
    madt.extend([1, 12, 1, 0]); // IOAPIC 1
    madt.extend(0xfec0_0000u32.to_le_bytes());
    madt.extend(0u32.to_le_bytes()); // its interrupts from 0
    memory.write(madt_at, &table(b"APIC", 5, &madt));

    let pointers = [fadt_at.to_le_bytes(), madt_at.to_le_bytes()].concat();
    memory.write(xsdt_at, &table(b"XSDT", 1, &pointers));

    let mut rsdp = [0u8; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"FLOOR ");
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&36u32.to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt_at.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    memory.write(at, &rsdp);
    at
}

/// A table with its header and checksum.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Vec::from(*signature);
    table.extend(
        u32::try_from(36 + body.len())
            .expect("tables are short")
            .to_le_bytes(),
    );
    table.extend([revision, 0]);
    table.extend(b"FLOOR FLOOR   \x01\0\0\0FLR \x01\0\0\0");
    table.extend(body);
    table[9] = checksum(&table);
    table
}

/// The byte that makes the sum 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}
