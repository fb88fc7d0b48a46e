// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PVH start information: what a kernel learns through EBX (Xen's public header `hvm/start_info.h`, version 1).

use coracle_memory::{GuestAddress, GuestMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::BootError;
use crate::initrd::Initrd;
use crate::layout::{CMDLINE, CMDLINE_MAX, HIGH_RAM, LOW_RAM_END, MEMORY_MAP, MODULES, START_INFO};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const RESERVED: u32 = 2;

/// `struct hvm_start_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Module {
    address: u64,
    size: u64,
    cmdline: u64,
    reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Writes the command line, the memory map, the module list and the start information that names them.
pub(crate) fn write(
    memory: &GuestMemory,
    cmdline: &str,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    write_cmdline(memory, cmdline)?;
    let map = memory_map(memory);
    put(memory, MEMORY_MAP, map.as_bytes(), "the memory map")?;
    if let Some(initrd) = initrd {
        let module = Module {
            address: initrd.address,
            size: initrd.size,
            cmdline: 0,
            reserved: 0,
        };
        put(memory, MODULES, module.as_bytes(), "the module list")?;
    }
    let info = StartInfo {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        modules: u32::from(initrd.is_some()),
        module_list: initrd.map_or(0, |_| MODULES),
        cmdline: CMDLINE,
        rsdp,
        memory_map: MEMORY_MAP,
        // A handful: one for each memory region and two more.
        memory_map_entries: u32::try_from(map.len()).unwrap_or_default(),
        reserved: 0,
    };
    put(memory, START_INFO, info.as_bytes(), "the start information")
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let length = cmdline.len();
    if length > CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong { length });
    }
    if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { position });
    }
    let what = "the command line";
    put(memory, CMDLINE, cmdline.as_bytes(), what)?;
    put(memory, CMDLINE + length as u64, &[0], what)
}

fn put(
    memory: &GuestMemory,
    address: u64,
    bytes: &[u8],
    what: &'static str,
) -> Result<(), BootError> {
    memory
        .write(GuestAddress(address), bytes)
        .map_err(|source| BootError::Write { what, source })
}

/// Guest memory as a PC has it: what was the BIOS's between [`LOW_RAM_END`] and [`HIGH_RAM`] is reserved.
fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let mut map = vec![MapEntry {
        address: LOW_RAM_END,
        size: HIGH_RAM - LOW_RAM_END,
        kind: RESERVED,
        reserved: 0,
    }];
    for region in memory.regions() {
        let (start, end) = (
            region.start().0,
            region.start().0.saturating_add(region.len()),
        );
        for (start, end) in [(start, end.min(LOW_RAM_END)), (start.max(HIGH_RAM), end)] {
            if start < end {
                map.push(MapEntry {
                    address: start,
                    size: end - start,
                    kind: RAM,
                    reserved: 0,
                });
            }
        }
    }
    map.sort_unstable_by_key(|entry| entry.address);
    map
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn memory(size: u64) -> GuestMemory {
        GuestMemory::anonymous(&coracle_memory::layout(size)).unwrap()
    }

    #[rstest]
    #[case::one_region(64 * MIB, &[(0, 0x9_fc00, RAM), (0x9_fc00, 0x6_0400, RESERVED), (MIB, 63 * MIB, RAM)])]
    #[case::around_the_hole(4 * GIB, &[(0, 0x9_fc00, RAM), (0x9_fc00, 0x6_0400, RESERVED), (MIB, 3 * GIB - MIB, RAM), (4 * GIB, GIB, RAM)])]
    fn memory_map_covers_ram_once(#[case] size: u64, #[case] expected: &[(u64, u64, u32)]) {
        let memory = memory(size);

        let map = memory_map(&memory);

        let found: Vec<_> = map
            .iter()
            .map(|entry| (entry.address, entry.size, entry.kind))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn start_information_names_all_that_was_written() {
        let memory = memory(16 * MIB);
        let initrd = Initrd {
            address: 0x80_0000,
            size: 1234,
        };

        write(&memory, "quiet", Some(initrd), 0xe_0000).unwrap();

        let info: StartInfo = memory.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!(info.magic, MAGIC);
        assert_eq!(info.rsdp, 0xe_0000);
        assert_eq!(info.memory_map_entries, 3);
        let module: Module = memory.read_obj(GuestAddress(info.module_list)).unwrap();
        assert_eq!((module.address, module.size), (0x80_0000, 1234));
        let mut cmdline = [0xff; 6];
        memory
            .read(GuestAddress(info.cmdline), &mut cmdline)
            .unwrap();
        assert_eq!(&cmdline, b"quiet\0");
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let memory = memory(16 * MIB);

        write(&memory, "", None, 0).unwrap();

        let info: StartInfo = memory.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.modules, info.module_list), (0, 0));
    }

    #[rstest]
    #[case::longest("x".repeat(2047), None)]
    #[case::too_long("x".repeat(2048), Some("the kernel's command line has 2048 bytes, more than the 2047 that Linux takes"))]
    #[case::nul("a\0b".to_owned(), Some("the kernel's command line holds a NUL at byte 1"))]
    fn command_line_is_checked(#[case] cmdline: String, #[case] expected: Option<&str>) {
        let memory = memory(16 * MIB);

        let error = write(&memory, &cmdline, None, 0).err();

        assert_eq!(error.map(|error| error.to_string()).as_deref(), expected);
    }
}
