// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ACPI tables (ACPI 6.5) for a machine without legacy hardware: what a stock kernel finds its CPUs, its IOAPIC and its
//! virtio-mmio devices by.
//!
//! The FADT says "hardware-reduced": no PIT, no PIC, no power management timer, no SCI, so that a kernel probes none
//! of them. Turning off and resetting go through the two port registers of [`layout`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use thiserror::Error;

use crate::layout::{self, ACPI_TABLES, HIGH_RAM};
use crate::{Boot, MmioDevice};

const OEM: [u8; 6] = *b"CORACL";
const OEM_TABLE: [u8; 8] = *b"CORACLE ";
const OEM_REVISION: u32 = 1;
/// ACPI 2.0 and later: integers of 64 bits.
const DSDT_REVISION: u8 = 2;
/// `IAPC_BOOT_ARCH`: no VGA, no MSI, no ASPM, no CMOS clock: nothing for a kernel to probe.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
/// Devices have a name of three hexadecimal digits.
const MAX_DEVICES: usize = 0x1000;
const TABLE_ALIGN: u64 = 16;

/// Why a machine cannot be described.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// No machine at all.
    #[error("a machine needs at least one vCPU")]
    NoVcpus,
    /// A window that a 32-bit descriptor cannot name.
    #[error("the device window of {size:#x} bytes at {base:#x} is not below 4 GiB")]
    Window {
        /// Its address.
        base: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// More than the tables have room for.
    #[error("the ACPI tables take {size} bytes, more than the {room} that they have")]
    TooLarge {
        /// Their size in bytes.
        size: u64,
        /// Their room in bytes.
        room: u64,
    },
    /// More than there are names for.
    #[error("{count} devices are more than the {max} that have a name", max = MAX_DEVICES)]
    TooManyDevices {
        /// How many.
        count: usize,
    },
    /// Where no guest memory is.
    #[error("the ACPI tables at {address:#x} cannot be written", address = ACPI_TABLES)]
    Write(#[source] AccessError),
}

/// Writes the tables at [`ACPI_TABLES`] and returns the address of the root pointer (RSDP).
pub(crate) fn write_tables(memory: &GuestMemory, boot: &Boot<'_>) -> Result<u64, AcpiError> {
    let tables = tables(boot, ACPI_TABLES)?;
    let (size, room) = (tables.len() as u64, HIGH_RAM - ACPI_TABLES);
    if size > room {
        return Err(AcpiError::TooLarge { size, room });
    }
    memory
        .write(GuestAddress(ACPI_TABLES), &tables)
        .map_err(AcpiError::Write)?;
    Ok(ACPI_TABLES)
}

/// All tables in one piece that is made for `address`, the root pointer first.
fn tables(boot: &Boot<'_>, address: u64) -> Result<Vec<u8>, AcpiError> {
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, address, &dsdt(boot.mmio, boot.serial_gsi)?);
    let fadt = append(&mut bytes, address, &fadt(dsdt));
    let madt = append(&mut bytes, address, &madt(boot.vcpus)?);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, address, &encode(&xsdt));
    let rsdp = encode(&Rsdp::new(OEM, xsdt));
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Ok(bytes)
}

fn encode(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Appends `table` to what stands at `address` and returns the address of the table.
fn append(bytes: &mut Vec<u8>, address: u64, table: &[u8]) -> u64 {
    let offset = bytes.len().next_multiple_of(TABLE_ALIGN as usize);
    bytes.resize(offset, 0);
    bytes.extend_from_slice(table);
    address + offset as u64
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Their absence as fixed hardware is said by setting them.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    encode(&fadt.finalize())
}

fn madt(vcpus: u8) -> Result<Vec<u8>, AcpiError> {
    if vcpus == 0 {
        return Err(AcpiError::NoVcpus);
    }
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    Ok(encode(&madt))
}

fn dsdt(devices: &[MmioDevice], serial_gsi: Option<u32>) -> Result<Vec<u8>, AcpiError> {
    if devices.len() > MAX_DEVICES {
        return Err(AcpiError::TooManyDevices {
            count: devices.len(),
        });
    }
    let mut aml = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&layout::SLEEP_TYPE_S5])).to_aml_bytes(&mut aml);
    if let Some(gsi) = serial_gsi {
        append_serial(&mut aml, gsi);
    }
    for (index, device) in devices.iter().enumerate() {
        append_virtio_mmio(&mut aml, index, device)?;
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    Ok(encode(&dsdt))
}

/// An edge-triggered, active high interrupt that nobody shares.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// COM1, whose interrupt a kernel knows from here only: a hardware-reduced machine has no ISA interrupts.
fn append_serial(aml: &mut Vec<u8>, gsi: u32) {
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &interrupt(gsi),
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// A device that Linux's virtio_mmio driver binds to by its identifier.
fn append_virtio_mmio(
    aml: &mut Vec<u8>,
    index: usize,
    device: &MmioDevice,
) -> Result<(), AcpiError> {
    let &MmioDevice {
        base,
        size,
        gsi,
        uid,
    } = device;
    let refused = AcpiError::Window { base, size };
    if base.checked_add(size).is_none_or(|end| end > 1 << 32) {
        return Err(refused);
    }
    let (Ok(base), Ok(size)) = (u32::try_from(base), u32::try_from(size)) else {
        return Err(refused);
    };
    Device::new(
        format!("_SB_.V{index:03X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            // Accesses by the device are coherent with the CPUs' caches.
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, size),
                    &interrupt(gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn device(index: u32) -> MmioDevice {
        MmioDevice {
            base: 0xd000_0000 + u64::from(index) * 0x1000,
            size: 0x1000,
            gsi: 5 + index,
            uid: 0x1000 + index,
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// The table at `address`, of the length that it gives.
    fn table(tables: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI_TABLES).unwrap();
        let length = u32_at(tables, start + 4) as usize;
        &tables[start..start + length]
    }

    fn boot<'a>(kernel: &'a std::fs::File, mmio: &'a [MmioDevice]) -> Boot<'a> {
        Boot {
            kernel,
            initrd: None,
            cmdline: "",
            vcpus: 3,
            mmio,
            serial_gsi: Some(4),
        }
    }

    #[test]
    fn every_table_is_reached_and_its_sum_is_zero() {
        let kernel = crate::testing::file(&[]);
        let devices = [device(0), device(1)];

        let tables = tables(&boot(&kernel, &devices), ACPI_TABLES).unwrap();

        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!((sum(&tables[..20]), sum(&tables[..36])), (0, 0));
        let xsdt = table(&tables, u64_at(&tables, 24));
        let fadt = table(&tables, u64_at(xsdt, 36));
        let madt = table(&tables, u64_at(xsdt, 44));
        let dsdt = table(&tables, u64_at(fadt, 140));
        let found: Vec<_> = [xsdt, fadt, madt, dsdt]
            .iter()
            .map(|table| (&table[..4], sum(table)))
            .collect();
        assert_eq!(
            found,
            [
                (&b"XSDT"[..], 0),
                (&b"FACP"[..], 0),
                (&b"APIC"[..], 0),
                (&b"DSDT"[..], 0)
            ]
        );
    }

    #[test]
    fn fadt_has_no_legacy_hardware_and_two_ways_to_stop() {
        let fadt = fadt(0x1234);

        let flags = u32_at(&fadt, 112);
        assert_ne!(flags & Flags::HwReducedAcpi as u32, 0);
        assert_ne!(flags & Flags::ResetRegSup as u32, 0);
        // Generic addresses: space 1 (I/O), 8 bits wide, accessed by bytes.
        assert_eq!(&fadt[116..120], &[1, 8, 0, 1]);
        assert_eq!(u64_at(&fadt, 120), u64::from(layout::RESET_PORT));
        assert_eq!(fadt[128], layout::RESET_VALUE);
        assert_eq!(
            u64_at(&fadt, 244 + 4),
            u64::from(layout::SLEEP_CONTROL_PORT)
        );
        assert_eq!(u64_at(&fadt, 256 + 4), u64::from(layout::SLEEP_STATUS_PORT));
    }

    #[rstest]
    #[case(1)]
    #[case(255)]
    fn madt_lists_each_vcpu_and_the_ioapic(#[case] vcpus: u8) {
        let madt = madt(vcpus).unwrap();

        assert_eq!(madt.len(), 44 + usize::from(vcpus) * 8 + 12);
        let last = &madt[44 + usize::from(vcpus - 1) * 8..][..8];
        assert_eq!(last, [0, 8, vcpus - 1, vcpus - 1, 1, 0, 0, 0]);
        let ioapic = &madt[madt.len() - 12..];
        assert_eq!(&ioapic[..8], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe]);
    }

    #[test]
    fn no_vcpu_is_refused() {
        assert!(matches!(madt(0), Err(AcpiError::NoVcpus)));
    }

    #[test]
    fn device_has_its_window_and_an_edge_triggered_interrupt() {
        let dsdt = dsdt(&[device(2)], None).unwrap();

        // Memory32Fixed, read-write; then an extended interrupt: consumer, edge, high, exclusive.
        let resources = [
            &[0x86, 9, 0, 1][..],
            &0xd000_2000u32.to_le_bytes(),
            &0x1000u32.to_le_bytes(),
            &[0x89, 6, 0, 0b0011, 1],
            &7u32.to_le_bytes(),
        ]
        .concat();
        assert!(
            dsdt.windows(resources.len())
                .any(|found| found == resources)
        );
        assert!(dsdt.windows(8).any(|found| found == b"LNRO0005"));
        // A name, and a word.
        assert!(dsdt.windows(7).any(|found| found == b"_UID\x0b\x02\x10"));
    }

    #[rstest]
    #[case::up_to_4_gib(0xffff_f000, 0x1000, true)]
    #[case::past_4_gib(0xffff_f000, 0x1001, false)]
    #[case::above_4_gib(1 << 32, 0x1000, false)]
    #[case::wraps(u64::MAX, 2, false)]
    fn window_must_be_below_4_gib(#[case] base: u64, #[case] size: u64, #[case] accepted: bool) {
        let device = MmioDevice {
            base,
            size,
            ..device(0)
        };

        let found = dsdt(&[device], None);

        assert_eq!(found.is_ok(), accepted);
    }

    #[rstest]
    #[case::too_many_names(MAX_DEVICES + 1, "4097 devices are more than the 4096 that have a name")]
    fn device_without_a_name_is_refused(#[case] count: usize, #[case] expected: &str) {
        let error = dsdt(&vec![device(0); count], None).unwrap_err();

        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn tables_larger_than_their_room_are_refused() {
        let kernel = crate::testing::file(&[]);
        let devices = vec![device(0); 2000];
        let memory = GuestMemory::anonymous(&coracle_memory::layout(2 << 20)).unwrap();

        let error = write_tables(&memory, &boot(&kernel, &devices)).unwrap_err();

        assert!(matches!(error, AcpiError::TooLarge { room: 0x2_0000, .. }));
    }
}
