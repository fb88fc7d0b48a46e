// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One entropy request: a chain in, random bytes in its device-writable part out.

use std::io::{self, Read};

use coracle_virtio::Chain;

/// The most bytes given for one request.
///
/// Virtio lets the device give fewer than the buffer holds. Without a bound one chain of 4 GiB
/// would keep the worker busy for seconds.
pub const MAX_REQUEST: usize = 64 << 10;

/// Bytes drawn from the source at a time, by way of the stack.
const BLOCK: usize = 4096;

/// A request that cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The device has to give at least one byte (virtio 1.3, section 5.4.6.2).
    #[error("entropy request {head} has no device-writable byte")]
    NoRoom {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// The source of entropy failed.
    #[error("the source of entropy failed")]
    Source(#[source] io::Error),
}

/// Fills the device-writable part of `chain` from `source`; returns the bytes written, at most
/// [`MAX_REQUEST`]. A device-readable part, which no driver should send, is ignored.
///
/// # Errors
///
/// [`RequestError::NoRoom`] when nothing is writable, [`RequestError::Source`] when `source`
/// fails or ends.
pub fn fill(chain: &Chain, source: &mut impl Read) -> Result<u32, RequestError> {
    let head = chain.head();
    let mut writer = chain.writable();
    let wanted = writer.remaining().min(MAX_REQUEST);
    if wanted == 0 {
        return Err(RequestError::NoRoom { head });
    }

    let mut block = [0; BLOCK];
    let mut left = wanted;
    while left > 0 {
        let bytes = &mut block[..left.min(BLOCK)];
        source.read_exact(bytes).map_err(RequestError::Source)?;
        left -= writer.write(bytes);
    }
    Ok(writer.written())
}

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;
    use coracle_virtio::testing::Driver;
    use coracle_virtio::{DESC_WRITE, Descriptor};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::testing::{SEAM, chain, memory, written};

    /// A source whose bytes tell their position.
    struct Counting(u8);

    impl Read for Counting {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in &mut *buffer {
                *byte = self.0;
                self.0 = self.0.wrapping_add(1);
            }
            Ok(buffer.len())
        }
    }

    fn counted(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Counting(0).read_exact(&mut bytes).unwrap();
        bytes
    }

    #[rstest]
    #[case::one_byte(&[1], 1)]
    #[case::more_than_a_block(&[5000], 5000)]
    #[case::scattered(&[3, 4096, 1], 4100)]
    #[case::exactly_the_most(&[MAX_REQUEST as u32], MAX_REQUEST)]
    #[case::beyond_the_most(&[MAX_REQUEST as u32, 1], MAX_REQUEST)]
    fn buffers_are_filled_in_order_up_to_the_limit(#[case] buffers: &[u32], #[case] len: usize) {
        let chain = chain(&[], buffers);

        let answer = fill(&chain, &mut Counting(0)).unwrap();

        assert_eq!(answer as usize, len);
        assert_eq!(written(&chain, len), counted(len));
    }

    #[test]
    fn buffer_in_two_adjacent_regions_is_filled() {
        let memory = memory();
        let mut driver = Driver::new(&memory, GuestAddress(0), 4096, 4).unwrap();
        let across = Descriptor {
            address: SEAM - 5,
            len: 10,
            flags: DESC_WRITE,
            next: 0,
        };
        driver.put(0, across).unwrap();
        driver.publish(0).unwrap();
        let mut chain = Chain::new();
        driver.queue(0).unwrap().pop(&mut chain).unwrap();

        fill(&chain, &mut Counting(0)).unwrap();

        let mut filled = [0; 10];
        memory.read(GuestAddress(SEAM - 5), &mut filled).unwrap();
        assert_eq!(filled[..], counted(10));
    }

    #[test]
    fn readable_part_is_left_alone() {
        let chain = chain(&[b"do not touch"], &[4]);

        let answer = fill(&chain, &mut Counting(0)).unwrap();

        let mut readable = [0; 12];
        chain.readable().read_exact(&mut readable).unwrap();
        assert_eq!(answer, 4);
        assert_eq!(&readable, b"do not touch");
    }

    #[test]
    fn request_without_room_is_refused() {
        let chain = chain(&[b"?"], &[]);

        let error = fill(&chain, &mut Counting(0)).unwrap_err();

        assert!(matches!(error, RequestError::NoRoom { head } if head == chain.head()));
    }

    #[test]
    fn source_that_ends_is_an_error() {
        let chain = chain(&[], &[8]);

        let error = fill(&chain, &mut &b"short"[..]).unwrap_err();

        assert!(matches!(error, RequestError::Source(_)));
    }

    proptest! {
        #[test]
        fn answer_is_the_source_whatever_the_layout(buffers in vec(1u32..6000, 1..8)) {
            let chain = chain(&[], &buffers);
            let room = buffers.iter().sum::<u32>() as usize;

            let answer = fill(&chain, &mut Counting(0)).unwrap() as usize;

            prop_assert_eq!(answer, room.min(MAX_REQUEST));
            prop_assert_eq!(written(&chain, answer), counted(answer));
        }
    }
}
