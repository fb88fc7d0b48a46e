// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ranges of guest memory, good and bad, through the public interface.

use std::sync::atomic::Ordering;

use coracle_memory::{
    AccessError, GuestAddress, GuestMemory, HUGE_PAGE_SIZE, MemoryError, PAGE_SIZE, ScatterList,
};
use proptest::prelude::*;
use rstest::rstest;
use vm_memory::{Bytes, GuestMemoryBackend};

const PAGE: u64 = PAGE_SIZE;

/// Pages 1 and 2 in a region each, adjacent; a hole; pages 5 and 6 in one region.
const RANGES: [(GuestAddress, u64); 3] = [
    (GuestAddress(PAGE), PAGE),
    (GuestAddress(2 * PAGE), PAGE),
    (GuestAddress(5 * PAGE), 2 * PAGE),
];

fn memory() -> GuestMemory {
    GuestMemory::anonymous(&RANGES).unwrap()
}

#[rstest]
#[case::nothing(&[])]
#[case::empty_range(&[(0, 0)])]
#[case::part_of_a_page(&[(0, PAGE + 1)])]
#[case::start_inside_a_page(&[(8, PAGE)])]
#[case::overlap(&[(0, 2 * PAGE), (PAGE, PAGE)])]
#[case::not_sorted(&[(PAGE, PAGE), (0, PAGE)])]
#[case::past_the_address_space(&[(0u64.wrapping_sub(PAGE), 2 * PAGE)])]
#[case::longer_than_host_pointers(&[(0, 1 << 63)])]
#[case::longer_than_the_host_has(&[(0, 1 << 60)])]
fn bad_ranges_are_refused(#[case] ranges: &[(u64, u64)]) {
    let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();

    assert!(GuestMemory::anonymous(&ranges).is_err());
    assert!(GuestMemory::shared(&ranges).is_err());
}

#[test]
fn errors_name_the_range() {
    let error = GuestMemory::anonymous(&[(GuestAddress(8), PAGE)]).unwrap_err();

    assert!(matches!(
        error,
        MemoryError::NotPages {
            start: GuestAddress(8),
            len: PAGE
        }
    ));
    assert!(error.to_string().contains("0x8"));
}

#[rstest]
#[case::anonymous(GuestMemory::anonymous(&RANGES).unwrap())]
#[case::shared(GuestMemory::shared(&RANGES).unwrap())]
fn regions_start_on_huge_pages_of_the_host(#[case] memory: GuestMemory) {
    let regions = memory.regions();

    assert_eq!(regions.len(), RANGES.len());
    for (region, (start, len)) in regions.iter().zip(RANGES) {
        assert_eq!((region.start(), region.len()), (start, len));
        assert_eq!(region.host_address() as u64 % HUGE_PAGE_SIZE, 0);
    }
}

#[test]
fn shared_regions_are_parts_of_one_sealed_file() {
    let memory = GuestMemory::shared(&RANGES).unwrap();
    memory.write(GuestAddress(5 * PAGE), b"third").unwrap();
    let (file, offset) = memory.regions()[2].file().unwrap();

    let mut bytes = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, offset).unwrap();

    assert_eq!(&bytes, b"third");
    assert_eq!(offset % HUGE_PAGE_SIZE, 0);
    assert!(file.set_len(0).is_err());
    assert!(memory.regions()[0].file().is_some());
}

#[test]
fn anonymous_regions_have_no_file() {
    assert!(memory().regions()[0].file().is_none());
}

#[rstest]
#[case::whole_region(PAGE, PAGE as usize, true)]
#[case::last_byte(2 * PAGE - 1, 1, true)]
#[case::empty_inside(PAGE + 5, 0, true)]
#[case::over_two_adjacent_regions(2 * PAGE - 1, 2, false)]
#[case::end_in_the_hole(3 * PAGE - 1, 2, false)]
#[case::before_the_first(PAGE - 1, 1, false)]
#[case::in_the_hole(3 * PAGE, 1, false)]
#[case::empty_in_the_hole(3 * PAGE, 0, false)]
#[case::past_the_last(7 * PAGE, 1, false)]
#[case::length_wraps(PAGE, usize::MAX, false)]
#[case::last_address(u64::MAX, 1, false)]
fn a_slice_is_inside_one_region(#[case] address: u64, #[case] len: usize, #[case] ok: bool) {
    let memory = memory();

    let slice = memory.slice(GuestAddress(address), len);

    assert_eq!(slice.is_ok(), ok);
    assert!(slice.is_err() || slice.is_ok_and(|slice| slice.len() == len));
}

#[test]
fn each_fault_has_its_name() {
    let memory = memory();
    let fault = |address, len| memory.slice(GuestAddress(address), len).unwrap_err();

    assert_eq!(
        fault(2 * PAGE - 1, 2),
        AccessError::SpansRegions {
            address: GuestAddress(2 * PAGE - 1),
            len: 2,
            end: GuestAddress(2 * PAGE),
        }
    );
    assert_eq!(
        fault(2 * PAGE - 1, 2 * PAGE as usize),
        AccessError::Unmapped {
            address: GuestAddress(2 * PAGE - 1),
            len: 2 * PAGE as usize,
            hole: GuestAddress(3 * PAGE),
        }
    );
    assert_eq!(
        fault(PAGE, usize::MAX),
        AccessError::Overflow {
            address: GuestAddress(PAGE),
            len: usize::MAX,
        }
    );
}

#[test]
fn slices_split_at_the_border_of_adjacent_regions() {
    let memory = memory();

    let lens: Vec<_> = memory
        .slices(GuestAddress(2 * PAGE - 3), 10)
        .unwrap()
        .map(|slice| slice.len())
        .collect();

    assert_eq!(lens, [3, 7]);
}

#[test]
fn a_write_that_reaches_a_hole_writes_nothing() {
    let memory = memory();

    let written = memory.write(GuestAddress(3 * PAGE - 2), b"abc");

    let mut bytes = [0xff; 2];
    memory.read(GuestAddress(3 * PAGE - 2), &mut bytes).unwrap();
    assert!(matches!(written, Err(AccessError::Unmapped { .. })));
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn values_cross_adjacent_regions() {
    let memory = memory();
    let at = GuestAddress(2 * PAGE - 3);

    memory.write_obj(at, &0x1122_3344_5566_7788u64).unwrap();

    assert_eq!(memory.read_obj::<u64>(at), Ok(0x1122_3344_5566_7788));
    assert_eq!(memory.read_obj::<[u8; 3]>(at), Ok([0x88, 0x77, 0x66]));
}

#[test]
fn atomics_are_aligned_and_inside() {
    let memory = memory();
    let at = GuestAddress(PAGE + 6);

    memory.store_u16(at, 0xabcd, Ordering::Release).unwrap();

    assert_eq!(memory.load_u16(at, Ordering::Acquire), Ok(0xabcd));
    assert!(matches!(
        memory.load_u32(at, Ordering::Acquire),
        Err(AccessError::Misaligned { size: 4, .. })
    ));
    assert!(matches!(
        memory.store_u32(GuestAddress(3 * PAGE - 2), 0, Ordering::Release),
        Err(AccessError::Unmapped { .. })
    ));
}

#[test]
fn orderings_that_make_no_sense_are_made_stronger() {
    let memory = memory();
    let at = GuestAddress(PAGE);

    memory.store_u32(at, 7, Ordering::Acquire).unwrap();

    assert_eq!(memory.load_u32(at, Ordering::Release), Ok(7));
    assert_eq!(memory.load_u16(at, Ordering::AcqRel), Ok(7));
}

#[test]
fn a_slice_reaches_no_further_than_itself() {
    let memory = memory();
    let slice = memory.slice(GuestAddress(PAGE), 8).unwrap();

    assert!(slice.sub(4, 4).is_some());
    assert!(slice.sub(4, 5).is_none());
    assert!(slice.sub(usize::MAX, 2).is_none());
    assert!(slice.split_at(8).is_some_and(|(_, rest)| rest.is_empty()));
    assert!(slice.split_at(9).is_none());
    assert!(slice.read_obj::<u64>(1).is_err());
    assert!(slice.write_obj(7, &0u16).is_err());
    assert!(slice.load_u16(7, Ordering::Relaxed).is_err());
    assert!(slice.store_u32(8, 0, Ordering::Relaxed).is_err());
    assert_eq!(slice.copy_to(&mut [0; 9]), 8);
    assert_eq!(slice.copy_from(&[0; 3]), 3);
}

#[test]
fn fill_stays_inside() {
    let memory = memory();

    memory.slice(GuestAddress(PAGE + 1), 2).unwrap().fill(0xee);

    assert_eq!(
        memory.read_obj(GuestAddress(PAGE)),
        Ok([0, 0xee, 0xee, 0u8])
    );
}

#[test]
fn an_owned_slice_keeps_the_memory_mapped() {
    let memory = memory();
    let owned = memory.owned_slice(GuestAddress(PAGE), 4).unwrap();
    memory.write(GuestAddress(PAGE), b"kept").unwrap();

    drop(memory);

    assert_eq!(owned.as_slice().read_obj(0), Ok(*b"kept"));
}

#[test]
fn a_scatter_list_splits_and_is_reused() {
    let memory = memory();
    let mut list = ScatterList::new();
    assert!(list.push(GuestAddress(PAGE), 1).is_err());

    list.reset(&memory);
    list.push(GuestAddress(2 * PAGE - 1), 2).unwrap();
    assert!(list.push(GuestAddress(3 * PAGE - 1), 2).is_err());
    drop(memory);

    assert_eq!(list.iovecs().len(), 2);
    let lens: Vec<_> = list.iter().map(|slice| slice.len()).collect();
    assert_eq!(lens, [1, 1]);
    assert_eq!(list.get(0).unwrap().copy_from(&[9]), 1);

    list.reset(&self::memory());
    assert!(list.is_empty());
    assert!(list.get(0).is_none());
}

#[test]
fn memory_of_vm_memory_stays_mapped_and_is_the_same() {
    let theirs = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[
        (vm_memory::GuestAddress(0), 0x2000),
        (vm_memory::GuestAddress(0x8000), 0x1000),
    ])
    .unwrap();
    theirs
        .write_slice(b"theirs", vm_memory::GuestAddress(0x8000))
        .unwrap();
    let ours = GuestMemory::from_vm_memory(&theirs);

    drop(theirs);

    assert_eq!(ours.read_obj(GuestAddress(0x8000)), Ok(*b"theirs"));
    assert_eq!(ours.regions().len(), 2);
    assert!(ours.slice(GuestAddress(0x2000), 1).is_err());
}

#[test]
fn memory_of_nobody_has_no_regions() {
    let ours = GuestMemory::from_vm_memory(&vm_memory::GuestMemoryMmap::new());

    assert!(ours.regions().is_empty());
    assert!(ours.slice(GuestAddress(0), 0).is_err());
}

#[test]
fn vm_memory_sees_the_same_bytes_and_outlives_ours() {
    let ours = memory();
    ours.write(GuestAddress(2 * PAGE - 1), b"ab").unwrap();
    let theirs = ours.as_vm_memory().clone();

    drop(ours);

    let mut bytes = [0; 2];
    theirs
        .read_slice(&mut bytes, vm_memory::GuestAddress(2 * PAGE - 1))
        .unwrap();
    assert_eq!(&bytes, b"ab");
    assert_eq!(theirs.num_regions(), 3);
    assert!(
        theirs
            .read_slice(&mut bytes, vm_memory::GuestAddress(3 * PAGE - 1))
            .is_err()
    );
}

proptest! {
    /// The law that everything stands on: a range is accessible if and only if each of its
    /// bytes is in some region, and a slice only if one region has them all.
    #[test]
    fn accessible_if_each_byte_is(address in 0..8 * PAGE, len in 1..4 * PAGE as usize) {
        let memory = memory();
        let region_of = |at: u64| RANGES
            .iter()
            .position(|(start, len)| (start.0..start.0 + len).contains(&at));
        let mut regions: Vec<_> = (address..address + len as u64).map(region_of).collect();
        regions.dedup();

        let address = GuestAddress(address);

        prop_assert_eq!(memory.check(address, len).is_ok(), !regions.contains(&None));
        prop_assert_eq!(memory.slices(address, len).is_ok(), !regions.contains(&None));
        prop_assert_eq!(
            memory.slice(address, len).is_ok(),
            regions.len() == 1 && regions[0].is_some()
        );
    }

    /// What is written is read again, by whatever pieces.
    #[test]
    fn read_gives_what_was_written(
        address in PAGE..3 * PAGE - 64,
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        cut in 0..64usize,
    ) {
        let memory = memory();
        let cut = cut.min(bytes.len());

        memory.write(GuestAddress(address), &bytes).unwrap();

        let mut again = vec![0; bytes.len()];
        let (first, second) = again.split_at_mut(cut);
        memory.read(GuestAddress(address), first).unwrap();
        memory.read(GuestAddress(address + cut as u64), second).unwrap();
        prop_assert_eq!(&again, &bytes);
        let gathered: Vec<u8> = memory
            .slices(GuestAddress(address), bytes.len())
            .unwrap()
            .flat_map(|slice| {
                let mut part = vec![0; slice.len()];
                slice.copy_to(&mut part);
                part
            })
            .collect();
        prop_assert_eq!(gathered, bytes);
    }
}
