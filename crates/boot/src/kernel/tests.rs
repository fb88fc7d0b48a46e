// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels put together by hand, most of them wrong.

use coracle_memory::GuestAddress;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::testing::{Part, elf, file, note, notes, pvh_note, segment};

const MIB: u64 = 1 << 20;

fn memory() -> GuestMemory {
    GuestMemory::anonymous(&coracle_memory::layout(8 * MIB)).unwrap()
}

fn load_parts(parts: &[Part]) -> Result<Kernel, KernelError> {
    load(&memory(), &file(&elf(parts)))
}

fn refusal(parts: &[Part]) -> String {
    load_parts(parts).unwrap_err().to_string()
}

#[test]
fn segments_are_loaded_at_their_physical_addresses() {
    let memory = memory();
    let image = elf(&[
        segment(2 * MIB, b"second", 6),
        segment(MIB, b"first", 5),
        pvh_note(MIB + 2),
    ]);

    let kernel = load(&memory, &file(&image)).unwrap();

    let (mut first, mut second) = ([0; 5], [0; 6]);
    memory.read(GuestAddress(MIB), &mut first).unwrap();
    memory.read(GuestAddress(2 * MIB), &mut second).unwrap();
    assert_eq!((&first, &second), (b"first", b"second"));
    assert_eq!(
        (u64::from(kernel.entry), kernel.end),
        (MIB + 2, 2 * MIB + 6)
    );
}

#[test]
fn bss_is_zeroed() {
    let memory = memory();
    memory.write(GuestAddress(MIB), &[0xff; 10_001]).unwrap();
    let image = elf(&[segment(MIB, b"code", 10_000), pvh_note(MIB)]);

    load(&memory, &file(&image)).unwrap();

    let mut found = [0; 10_001];
    memory.read(GuestAddress(MIB), &mut found).unwrap();
    assert_eq!(&found[..4], b"code");
    assert!(found[4..10_000].iter().all(|byte| *byte == 0));
    assert_eq!(found[10_000], 0xff);
}

#[rstest]
#[case::without_an_entry(notes(&note(b"GNU\0", 3, &[0; 20])))]
#[case::with_another_entry(pvh_note(MIB + 1))]
fn later_note_segment_does_not_override_the_entry(#[case] later: Part) {
    let kernel = load_parts(&[segment(MIB, b"code", 4), pvh_note(MIB), later]).unwrap();

    assert_eq!(u64::from(kernel.entry), MIB);
}

#[test]
fn entry_of_four_bytes_is_read() {
    let entry = note(b"Xen\0", 18, &(MIB as u32).to_le_bytes());

    let kernel = load_parts(&[segment(MIB, b"code", 4), notes(&entry)]).unwrap();

    assert_eq!(u64::from(kernel.entry), MIB);
}

#[rstest]
#[case::below_the_kernel(&[segment(0xf_ffff, b"code", 4), pvh_note(0xf_ffff)],
    "segment 0 of the kernel loads at 0xfffff, below 0x100000")]
#[case::outside_memory(&[segment(8 * MIB - 3, b"code", 4), pvh_note(8 * MIB)],
    "segment 0 of the kernel, 0x4 bytes at 0x7ffffd, does not fit in guest memory")]
#[case::end_wraps(&[segment(u64::MAX, b"code", 4), pvh_note(MIB)],
    "segment 0 of the kernel, 0x4 bytes at 0xffffffffffffffff, does not fit in guest memory")]
#[case::huge(&[segment(MIB, b"code", u64::MAX), pvh_note(MIB)],
    "segment 0 of the kernel, 0xffffffffffffffff bytes at 0x100000, does not fit in guest memory")]
#[case::more_in_the_file(&[segment(MIB, b"code", 3), pvh_note(MIB)],
    "segment 0 of the kernel has 0x4 bytes in the file but only 0x3 in memory")]
#[case::overlap(&[segment(MIB, b"code", 5000), segment(MIB + 4096, b"data", 4), pvh_note(MIB)],
    "two segments of the kernel overlap at 0x101000")]
#[case::nothing(&[pvh_note(MIB)], "the kernel image has no segment to load")]
#[case::no_entry(&[segment(MIB, b"code", 4)],
    "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
#[case::entry_of_another_kind(&[segment(MIB, b"code", 4), notes(&note(b"Xen\0", 17, &[0; 8]))],
    "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
#[case::entry_of_odd_size(&[segment(MIB, b"code", 4), notes(&note(b"Xen\0", 18, &[0; 5]))],
    "the kernel has no PVH entry note (was it built with CONFIG_PVH?)")]
#[case::entry_behind_its_segment(&[segment(MIB, b"code", 4), pvh_note(MIB + 4)],
    "the kernel's PVH entry 0x100004 is in none of its segments")]
#[case::entry_of_64_bits(&[segment(MIB, b"code", 4), pvh_note((1 << 32) + MIB)],
    "the kernel's PVH entry 0x100100000 is in none of its segments")]
#[case::large_notes(&[segment(MIB, b"code", 4), notes(&[0; 0x1_0001])],
    "the kernel image has a note segment of 0x10001 bytes; 0x10000 are accepted")]
fn unusable_segment_is_refused(#[case] parts: &[Part], #[case] expected: &str) {
    assert_eq!(refusal(parts), expected);
}

#[test]
fn too_many_program_headers_are_refused() {
    let parts = vec![segment(MIB, b"", 0); 129];

    assert_eq!(
        refusal(&parts),
        "the kernel image has 129 program headers of 56 bytes; 1 to 128 of 56 bytes are accepted"
    );
}

#[rstest]
#[case::empty(&[], "the kernel image has 0 bytes, too few for a kernel")]
#[case::header_cut(&[0x7f; 63], "the kernel image has 63 bytes, too few for a kernel")]
#[case::script(&[b'#'; 64], "the kernel image is neither an ELF file nor a bzImage: it begins with the bytes 23 23 23 23")]
fn file_that_is_no_kernel_is_refused(#[case] content: &[u8], #[case] expected: &str) {
    let error = load(&memory(), &file(content)).unwrap_err();

    assert_eq!(error.to_string(), expected);
}

#[cfg(not(feature = "compressed"))]
#[test]
fn bzimage_is_named() {
    let error = load(&memory(), &file(&bzimage(b"?"))).unwrap_err();

    assert!(matches!(error, KernelError::BzImage));
}

/// A bzImage with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

#[cfg(feature = "compressed")]
mod compressed {
    use std::error::Error;
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn kernel_in_a_bzimage_is_loaded() {
        let memory = memory();
        memory.write(GuestAddress(MIB), &[0xff; 8]).unwrap();
        let kernel = elf(&[segment(MIB, b"code", 6), pvh_note(MIB + 1)]);

        let loaded = load(&memory, &file(&bzimage(&gzip(&kernel)))).unwrap();

        let mut found = [0; 8];
        memory.read(GuestAddress(MIB), &mut found).unwrap();
        assert_eq!(&found, b"code\0\0\xff\xff");
        assert_eq!((u64::from(loaded.entry), loaded.end), (MIB + 1, MIB + 6));
    }

    #[rstest]
    #[case::of_no_known_format(
        bzimage(b"BZh91AY"),
        "the bzImage cannot be unpacked: the kernel is compressed in an unknown way: it begins with [42, 5a, 68, 39, 31, 41]"
    )]
    #[case::of_no_elf(bzimage(&gzip(b"MZ, of all things")), "the bzImage cannot be unpacked: the kernel is not an ELF file: it begins with [4d, 5a, 2c, 20, 6f, 66]")]
    #[case::of_an_unusable_kernel(bzimage(&gzip(&elf(&[pvh_note(MIB)]))), "the kernel image has no segment to load")]
    #[case::of_a_kernel_cut_short(bzimage(&gzip(&elf(&[segment(MIB, b"code", 4), pvh_note(MIB)])[..178])), "the kernel image is truncated: segment 0 takes 0x4 bytes at offset 0xb0 of 0xb2")]
    fn unusable_bzimage_is_refused(#[case] image: Vec<u8>, #[case] expected: &str) {
        let error = load(&memory(), &file(&image)).unwrap_err();

        let reason = error.source().map(|reason| format!(": {reason}"));
        assert_eq!(format!("{error}{}", reason.unwrap_or_default()), expected);
    }

    #[test]
    fn bzimage_of_any_size_is_refused_before_it_is_read() {
        let file = file(&bzimage(b""));
        file.set_len(1 << 40).unwrap();

        let error = load(&memory(), &file).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the bzImage has 0x10000000000 bytes; 0x8000000 are accepted"
        );
    }
}

#[rstest]
#[case::class_of_32_bits(4, 1)]
#[case::big_endian(5, 2)]
#[case::machine_of_arm(18, 183)]
fn elf_file_for_another_machine_is_refused(#[case] offset: usize, #[case] value: u8) {
    let mut image = elf(&[segment(MIB, b"code", 4), pvh_note(MIB)]);
    image[offset] = value;

    let error = load(&memory(), &file(&image)).unwrap_err();

    assert!(matches!(error, KernelError::ForeignElf { .. }));
}

#[test]
fn image_cut_anywhere_is_refused() {
    let image = elf(&[segment(MIB, b"code", 4), pvh_note(MIB)]);

    let accepted: Vec<_> = (0..image.len())
        .filter(|length| load(&memory(), &file(&image[..*length])).is_ok())
        .collect();

    assert_eq!(accepted, [0usize; 0]);
}

#[test]
fn refused_kernel_leaves_guest_memory_alone() {
    let memory = memory();
    let image = elf(&[
        segment(MIB, b"code", 4),
        segment(9 * MIB, b"data", 4),
        pvh_note(MIB),
    ]);

    load(&memory, &file(&image)).unwrap_err();

    let mut found = [0xff; 4];
    memory.read(GuestAddress(MIB), &mut found).unwrap();
    assert_eq!(found, [0; 4]);
}

proptest! {
    /// Whatever its header and its tables say, a kernel is refused or loaded where guest memory is.
    #[test]
    fn altered_kernel_is_refused_or_loaded_inside(
        changes in prop::collection::vec((0_usize..300, any::<u8>()), 1..8),
    ) {
        let mut image = elf(&[segment(MIB, b"code", 64), segment(2 * MIB, b"data", 8), pvh_note(MIB)]);
        for (position, value) in changes {
            let length = image.len();
            image[position % length] = value;
        }

        let kernel = load(&memory(), &file(&image));

        if let Ok(Kernel { entry, end }) = kernel {
            prop_assert!((MIB..end).contains(&u64::from(entry)));
            prop_assert!(end <= 8 * MIB);
        }
    }
}
