// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

mod acpi;
#[cfg(feature = "compressed")]
pub mod compressed;
mod elf;
mod error;
mod image;
mod initrd;
mod kernel;
pub mod layout;
mod start_info;
mod state;

#[cfg(test)]
mod testing;

use std::fs::File;

use coracle_memory::GuestMemory;

pub use acpi::AcpiError;
pub use error::BootError;
pub use image::ReadError;
pub use initrd::InitrdError;
pub use kernel::{KernelError, KernelPart};
pub use state::{Segment, StartState};

/// What a virtual machine boots, and what its kernel is told of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// An ELF kernel (`vmlinux`) with a PVH entry note, or with the feature `compressed` a bzImage of one, as a regular
    /// file.
    pub kernel: &'a File,
    /// An initial RAM disk, as a regular file.
    pub initrd: Option<&'a File>,
    /// The kernel's command line, at most [`layout::CMDLINE_MAX`] bytes and without a NUL.
    pub cmdline: &'a str,
    /// The number of vCPUs, at least one. Their local APIC identifiers are 0, 1, 2 and so on.
    pub vcpus: u8,
    /// The virtio-mmio devices that the ACPI tables describe.
    pub mmio: &'a [MmioDevice],
    /// The interrupt of the serial port COM1, where the machine has one.
    pub serial_gsi: Option<u32>,
}

/// The window and the interrupt of one virtio-mmio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address of the window, below 4 GiB.
    pub base: u64,
    /// Length of the window in bytes.
    pub size: u64,
    /// Global system interrupt, edge-triggered and active high.
    pub gsi: u32,
    /// What tells it from the others, which have other numbers: ACPI's `_UID` (ACPI 6.5, section 6.1.12). In Linux it is
    /// `firmware_node/uid` of the device's directory in sysfs.
    pub uid: u32,
}

/// Writes everything that `boot` names into `memory` and returns the state in which the first vCPU starts.
///
/// The kernel's segments and the initrd are read straight into guest memory; the rest ([`layout`]) is small. The work is
/// bounded by the size of guest memory, whatever the files hold.
///
/// # Errors
///
/// A sentence that names what is wrong with the kernel, the initrd, the command line or the machine. Guest
/// memory may then hold a part of what was to be loaded.
pub fn load(memory: &GuestMemory, boot: &Boot<'_>) -> Result<StartState, BootError> {
    let kernel = kernel::load(memory, boot.kernel).map_err(BootError::Kernel)?;
    let initrd = boot
        .initrd
        .map(|file| initrd::load(memory, file, kernel.end))
        .transpose()
        .map_err(BootError::Initrd)?;
    let rsdp = acpi::write_tables(memory, boot).map_err(BootError::Acpi)?;
    start_info::write(memory, boot.cmdline, initrd, rsdp)?;
    Ok(StartState::pvh(kernel.entry, layout::START_INFO))
}

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;

    use super::*;
    use crate::testing::{elf, file, pvh_note, segment};

    const MIB: u64 = 1 << 20;

    fn machine<'a>(kernel: &'a File, initrd: Option<&'a File>) -> Boot<'a> {
        Boot {
            kernel,
            initrd,
            cmdline: "quiet",
            vcpus: 2,
            mmio: &[MmioDevice {
                base: 0xd000_0000,
                size: 0x1000,
                gsi: 5,
                uid: 0,
            }],
            serial_gsi: Some(4),
        }
    }

    #[test]
    fn kernel_starts_at_its_entry_with_all_that_it_is_told() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(16 * MIB)).unwrap();
        let kernel = file(&elf(&[segment(2 * MIB, b"code", 8), pvh_note(2 * MIB + 1)]));
        let initrd = file(b"initrd");

        let start = load(&memory, &machine(&kernel, Some(&initrd))).unwrap();

        assert_eq!((start.rip, start.rbx), (2 * MIB + 1, layout::START_INFO));
        // The places of the module list and of the ACPI root pointer in the start information.
        let modules: u64 = memory.read_obj(GuestAddress(start.rbx + 16)).unwrap();
        let rsdp: u64 = memory.read_obj(GuestAddress(start.rbx + 32)).unwrap();
        let initrd_address: u64 = memory.read_obj(GuestAddress(modules)).unwrap();
        let mut found = [0; 6];
        memory
            .read(GuestAddress(initrd_address), &mut found)
            .unwrap();
        let mut signature = [0; 8];
        memory.read(GuestAddress(rsdp), &mut signature).unwrap();
        assert_eq!((&found, &signature), (b"initrd", b"RSD PTR "));
    }

    #[test]
    fn initrd_over_the_kernel_is_refused() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(4 * MIB)).unwrap();
        let kernel = file(&elf(&[segment(2 * MIB, b"code", 8), pvh_note(2 * MIB)]));
        let initrd = file(&vec![1; 2 << 20]);

        let error = load(&memory, &machine(&kernel, Some(&initrd))).unwrap_err();

        assert!(matches!(
            error,
            BootError::Initrd(InitrdError::TooLarge { .. })
        ));
    }

    #[test]
    fn memory_without_room_for_the_tables_is_refused() {
        let memory = GuestMemory::anonymous(&[(GuestAddress(MIB), 2 * MIB)]).unwrap();
        let kernel = file(&elf(&[segment(MIB, b"code", 8), pvh_note(MIB)]));

        let error = load(&memory, &machine(&kernel, None)).unwrap_err();

        assert!(matches!(error, BootError::Acpi(AcpiError::Write(_))));
    }
}
