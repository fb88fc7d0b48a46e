// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From an address as the guest's code sees it to guest memory, by the guest's page tables (Intel SDM volume 3, chapter
//! 4). They are read, never written, and a table that points anywhere leads to an error at worst.

use coracle_memory::{GuestAddress, GuestMemory};
use kvm_bindings::kvm_sregs;

const CR0_PAGING: u64 = 1 << 31;
const CR4_LARGE_PAGES: u64 = 1 << 4;
const CR4_PHYSICAL_EXTENSION: u64 = 1 << 5;
/// Control register 4: page tables have five levels.
pub(crate) const CR4_FIVE_LEVELS: u64 = 1 << 12;
const EFER_LONG_ACTIVE: u64 = 1 << 10;

/// The entry leads somewhere.
const PRESENT: u64 = 1;
/// The entry leads to a large page, not to a table.
const LARGE: u64 = 1 << 7;
/// The address in an entry of eight bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How many bytes a page has.
const PAGE: u64 = 4096;

/// Guest memory at the address `linear`, and how many bytes follow it in the same page.
pub(crate) fn translate(
    memory: &GuestMemory,
    registers: &kvm_sregs,
    linear: u64,
) -> Option<(GuestAddress, usize)> {
    let address = if registers.cr0 & CR0_PAGING == 0 {
        linear
    } else if registers.efer & EFER_LONG_ACTIVE != 0 {
        let levels = match registers.cr4 & CR4_FIVE_LEVELS {
            0 => 4,
            _ => 5,
        };
        if !is_canonical(linear, levels) {
            return None;
        }
        walk(memory, registers.cr3 & ADDRESS, levels, linear)?
    } else if registers.cr4 & CR4_PHYSICAL_EXTENSION != 0 {
        let linear = u32::try_from(linear).ok()?;
        // A table of four entries, which has 32 bytes and is aligned to as many.
        let directory = (registers.cr3 & 0xffff_ffe0) + u64::from(linear >> 30) * 8;
        let entry = entry(memory, directory)?;
        walk(memory, entry & ADDRESS, 2, linear.into())?
    } else {
        let large_pages = registers.cr4 & CR4_LARGE_PAGES != 0;
        walk_32(
            memory,
            registers.cr3,
            large_pages,
            u32::try_from(linear).ok()?,
        )?
    };
    // At most a page.
    let rest = (PAGE - address % PAGE) as usize;
    Some((GuestAddress(address), rest))
}

/// Whether all bits above those that the tables translate are copies of the highest that they do.
fn is_canonical(linear: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    let signed = (linear << unused).cast_signed() >> unused;
    signed.cast_unsigned() == linear
}

/// Through `levels` of tables with 512 entries each.
fn walk(memory: &GuestMemory, table: u64, levels: u32, linear: u64) -> Option<u64> {
    let mut table = table;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = entry(memory, table + (linear >> shift & 0x1ff) * 8)?;
        // A page of 1 GiB or 2 MiB, or the last level.
        if level == 0 || (level <= 2 && entry & LARGE != 0) {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

fn entry(memory: &GuestMemory, address: u64) -> Option<u64> {
    let entry: u64 = memory.read_obj(GuestAddress(address)).ok()?;
    (entry & PRESENT != 0).then_some(entry)
}

/// Through the two levels of tables with 1024 entries of four bytes.
fn walk_32(memory: &GuestMemory, cr3: u64, large_pages: bool, linear: u32) -> Option<u64> {
    let entry = |table: u32, index: u32| {
        let address = u64::from(table & 0xffff_f000) + u64::from(index) * 4;
        let entry: u32 = memory.read_obj(GuestAddress(address)).ok()?;
        (u64::from(entry) & PRESENT != 0).then_some(entry)
    };
    // CR3 has 32 bits in this mode.
    let directory = entry(cr3 as u32, linear >> 22)?;
    if large_pages && u64::from(directory) & LARGE != 0 {
        // Bits 32 to 39 of the address are in bits 13 to 20.
        let high = u64::from(directory >> 13 & 0xff) << 32;
        return Some(high | u64::from(directory & 0xffc0_0000 | linear & 0x003f_ffff));
    }
    let page = entry(directory, linear >> 12 & 0x3ff)?;
    Some(u64::from(page & 0xffff_f000 | linear & 0xfff))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const TOP: u64 = 0x1000;
    const LONG: (u64, u64, u64) = (CR0_PAGING, CR4_PHYSICAL_EXTENSION, EFER_LONG_ACTIVE);

    fn memory(entries: &[(u64, u64)]) -> GuestMemory {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(1 << 20)).unwrap();
        for (address, entry) in entries {
            memory.write_obj(GuestAddress(*address), entry).unwrap();
        }
        memory
    }

    fn registers((cr0, cr4, efer): (u64, u64, u64)) -> kvm_sregs {
        kvm_sregs {
            cr0,
            cr3: TOP,
            cr4,
            efer,
            ..Default::default()
        }
    }

    fn found(entries: &[(u64, u64)], mode: (u64, u64, u64), linear: u64) -> Option<u64> {
        let found = translate(&memory(entries), &registers(mode), linear);
        found.map(|(address, _)| address.0)
    }

    #[rstest]
    #[case::of_4_kib(&[(TOP + 0x1ff * 8, 0x2003), (0x2ff0, 0x3003), (0x3008, 0x4003), (0x4010, 0x7_7003)], 0xffff_ffff_8020_2abc, Some(0x7_7abc))]
    #[case::of_2_mib(&[(TOP, 0x2003), (0x2000, 0x3003), (0x3008, 0x80_0083)], 0x21_2345, Some(0x81_2345))]
    #[case::of_1_gib(&[(TOP, 0x2003), (0x2008, 0x8000_0083)], 0x4001_2345, Some(0x8001_2345))]
    #[case::not_present(&[(TOP, 0x2003), (0x2000, 0x3002)], 0x1000, None)]
    #[case::table_outside_memory(&[(TOP, 0x7fff_f003)], 0, None)]
    #[case::large_entry_of_the_top_level(&[(TOP, 0x2083)], 0, None)]
    #[case::not_canonical(&[(TOP, 0x2003), (0x2000, 0x83)], 1 << 48, None)]
    #[case::no_execute_bit_is_no_address(&[(TOP, 0x2003), (0x2000, 1 << 63 | 0x4000_0083)], 5, Some(0x4000_0005))]
    fn page_of_long_mode(
        #[case] entries: &[(u64, u64)],
        #[case] linear: u64,
        #[case] expected: Option<u64>,
    ) {
        assert_eq!(found(entries, LONG, linear), expected);
    }

    #[test]
    fn five_levels_translate_57_bits() {
        let (cr0, cr4, efer) = LONG;
        let entries = [(TOP + 8, 0x2003), (0x2000, 0x3003), (0x3000, 0x4000_0083)];

        let address = found(
            &entries,
            (cr0, cr4 | CR4_FIVE_LEVELS, efer),
            1 << 48 | 0x123,
        );

        assert_eq!(address, Some(0x4000_0123));
    }

    #[rstest]
    #[case::without_paging((0, 0, 0), &[], 0x1234, Some(0x1234))]
    #[case::of_4_kib((CR0_PAGING, 0, 0), &[(TOP + 4, 0x2003), (0x2008, 0x5003)], 0x40_2abc, Some(0x5abc))]
    #[case::of_4_mib((CR0_PAGING, CR4_LARGE_PAGES, 0), &[(TOP + 4, 0x80_0083)], 0x40_2abc, Some(0x80_2abc))]
    #[case::past_4_gib((CR0_PAGING, 0, 0), &[(TOP, 0x2003)], 1 << 32, None)]
    #[case::extended((CR0_PAGING, CR4_PHYSICAL_EXTENSION, 0), &[(TOP + 8, 0x2001), (0x2008, 0x3003), (0x3010, 0x1_0000_5003)], 0x4020_2abc, Some(0x1_0000_5abc))]
    fn page_of_protected_mode(
        #[case] mode: (u64, u64, u64),
        #[case] entries: &[(u64, u64)],
        #[case] linear: u64,
        #[case] expected: Option<u64>,
    ) {
        assert_eq!(found(entries, mode, linear), expected);
    }

    #[test]
    fn bytes_up_to_the_end_of_the_page_follow() {
        let (_, rest) = translate(&memory(&[]), &registers((0, 0, 0)), 0x1ffd).unwrap();

        assert_eq!(rest, 3);
    }

    proptest! {
        #[test]
        fn any_tables_end(
            entries in prop::collection::vec((0u64..0x8000, any::<u64>()), 0..64),
            linear in any::<u64>(),
            cr3 in any::<u64>(),
            cr4 in any::<u64>(),
            efer in any::<u64>(),
        ) {
            let memory = memory(&entries);
            let registers = kvm_sregs { cr0: CR0_PAGING, cr3, cr4, efer, ..Default::default() };

            if let Some((address, rest)) = translate(&memory, &registers, linear) {
                prop_assert_eq!(address.0 % PAGE, linear % PAGE);
                prop_assert!((1..=4096).contains(&rest));
            }
        }
    }
}
