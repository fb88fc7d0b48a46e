// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device's features and configuration space (virtio 1.3, sections 5.2.3 and 5.2.4).

use coracle_virtio::features;

use super::queue::{MAX_DATA, MAX_RANGE_SECTORS, MAX_RANGES, MAX_ZERO_RANGES, Properties, SECTOR};

const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
/// The driver can ask for flushes.
pub(super) const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
/// The driver can choose between write-back and write-through.
pub(super) const CONFIG_WCE: u64 = 1 << 11;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

pub(super) const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request: what a queue holds besides header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most bytes in one buffer: 128 KiB.
const SEGMENT_LEN: u32 = MAX_DATA / SEGMENTS;

/// Where the driver's choice of caching is: one byte, 1 for write-back.
pub(super) const WRITEBACK: u64 = 32;

const LEN: usize = 60;

/// The features of a disk.
pub(super) fn features(disk: &Properties) -> u64 {
    let always = features::RING | SIZE_MAX | SEG_MAX | BLOCK_SIZE | TOPOLOGY | FLUSH;
    match disk.read_only {
        true => always | READ_ONLY,
        false => always | CONFIG_WCE | DISCARD | WRITE_ZEROES,
    }
}

/// The configuration space of a disk, up to `write_zeroes_may_unmap`, with write-back caching.
pub(super) fn space(disk: &Properties) -> [u8; LEN] {
    let mut space = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let exponent = physical_block_exponent(disk);

    put(0, &(disk.size / SECTOR).to_le_bytes());
    put(8, &SEGMENT_LEN.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    // 16: the geometry of cylinders and heads, which is not offered.
    put(20, &disk.block_size.to_le_bytes());
    put(24, &[exponent, 0]);
    // The least that is worth a request, in blocks; 28: no best size.
    put(26, &(1u16 << exponent).to_le_bytes());
    put(WRITEBACK as usize, &[1]);
    put(34, &1u16.to_le_bytes());
    if !disk.read_only {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        // The unit of discarding, in sectors.
        let unit = u64::from(disk.physical_block_size) / SECTOR;
        put(44, &u32::try_from(unit).unwrap_or(1).to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &(MAX_ZERO_RANGES as u32).to_le_bytes());
        put(56, &[1]);
    }
    space
}

/// How many blocks are in a physical one, as a power of two that 16 bits of blocks can tell.
fn physical_block_exponent(disk: &Properties) -> u8 {
    let blocks = disk
        .physical_block_size
        .checked_div(disk.block_size)
        .unwrap_or(1);
    blocks.max(1).ilog2().min(15) as u8
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DISK: Properties = Properties {
        size: 0x1234_5678 * SECTOR,
        read_only: false,
        block_size: 512,
        physical_block_size: 4096,
    };

    #[rstest]
    #[case::capacity(0, &[0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0])]
    #[case::size_max(8, &[0, 0, 2, 0])]
    #[case::seg_max(12, &[254, 0, 0, 0])]
    #[case::geometry(16, &[0; 4])]
    #[case::block_size(20, &[0, 2, 0, 0])]
    #[case::physical_block_exponent(24, &[3])]
    #[case::alignment(25, &[0])]
    #[case::least_request(26, &[8, 0])]
    #[case::best_request(28, &[0; 4])]
    #[case::writeback(32, &[1])]
    #[case::queues(34, &[1, 0])]
    #[case::discard(36, &[0, 0, 1, 0, 16, 0, 0, 0, 8, 0, 0, 0])]
    #[case::write_zeroes(48, &[0, 0, 1, 0, 1, 0, 0, 0, 1])]
    #[case::padding(57, &[0; 3])]
    fn field_is_where_the_standard_puts_it(#[case] offset: usize, #[case] expected: &[u8]) {
        assert_eq!(space(&DISK)[offset..offset + expected.len()], *expected);
    }

    #[rstest]
    #[case::same(512, 512, 0)]
    #[case::eight(512, 4096, 3)]
    #[case::native(4096, 4096, 0)]
    #[case::huge(512, 1 << 31, 15)]
    #[case::smaller_than_a_block(4096, 512, 0)]
    #[case::no_power_of_two(512, 5000, 3)]
    #[case::nothing(0, 0, 0)]
    fn exponent_fits_whatever_the_host_says(
        #[case] block_size: u32,
        #[case] physical_block_size: u32,
        #[case] expected: u8,
    ) {
        let disk = Properties {
            block_size,
            physical_block_size,
            ..DISK
        };

        assert_eq!(space(&disk)[24], expected);
    }

    #[test]
    fn read_only_disk_offers_no_way_to_change_it() {
        let disk = Properties {
            read_only: true,
            ..DISK
        };

        assert_eq!(features(&disk) & (1 << 5), 1 << 5);
        assert_eq!(features(&disk) & (1 << 11 | 1 << 13 | 1 << 14), 0);
        assert_eq!(space(&disk)[36..], [0; 24]);
    }
}
