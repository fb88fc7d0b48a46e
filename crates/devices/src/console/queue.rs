// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One buffer of a console queue: bytes out of it, or bytes into it.

use std::io::{self, Write};

use coracle_virtio::Chain;

/// The most bytes taken from one transmit buffer; what is beyond is dropped.
///
/// No driver known sends a tenth of it. Without a bound one chain of 4 GiB, all of it the same
/// page, would keep the worker busy for seconds.
pub const MAX_TRANSMIT: usize = 1 << 20;

/// Bytes copied at a time, by way of the stack.
const BLOCK: usize = 4096;

/// Writes the device-readable part of `chain` to `output`, at most [`MAX_TRANSMIT`] bytes of it;
/// returns the bytes written. A device-writable part is ignored.
///
/// # Errors
///
/// The error of `output`. The buffer counts as transmitted all the same: a console has no way
/// to tell its driver otherwise.
pub fn transmit(chain: &Chain, output: &mut impl Write) -> io::Result<usize> {
    let mut reader = chain.readable();
    let total = reader.remaining().min(MAX_TRANSMIT);

    let mut block = [0; BLOCK];
    while reader.consumed() < total {
        let wanted = BLOCK.min(total - reader.consumed());
        let count = reader.read(&mut block[..wanted]);
        output.write_all(&block[..count])?;
    }
    Ok(total)
}

/// Copies as much of `input` as fits into the device-writable part of `chain`; returns the bytes
/// copied, 0 for a chain with nothing writable.
pub fn receive(chain: &Chain, input: &[u8]) -> u32 {
    let mut writer = chain.writable();
    writer.write(input);
    writer.written()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::testing::{chain, written};

    #[test]
    fn buffers_are_transmitted_in_order() {
        let long = [b'-'; 5000];
        let chain = chain(&[b"one ", &long, b" two"], &[]);
        let mut output = Vec::new();

        let count = transmit(&chain, &mut output).unwrap();

        assert_eq!(count, 5008);
        assert_eq!(output, [&b"one "[..], &long, b" two"].concat());
    }

    #[test]
    fn transmission_ends_at_the_limit() {
        let chain = chain(&[&[b'a'; MAX_TRANSMIT], b"beyond"], &[]);
        let mut output = Vec::new();

        let count = transmit(&chain, &mut output).unwrap();

        assert_eq!(count, MAX_TRANSMIT);
        assert_eq!(output, [b'a'; MAX_TRANSMIT]);
    }

    #[test]
    fn failing_output_is_reported() {
        let chain = chain(&[b"text"], &[]);
        let mut full: &mut [u8] = &mut [0; 2];

        let error = transmit(&chain, &mut full).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[rstest]
    #[case::fits(b"abc", &[8], b"abc")]
    #[case::fills_exactly(b"abcd", &[1, 3], b"abcd")]
    #[case::too_long(b"abcdef", &[2, 2], b"abcd")]
    #[case::nothing(b"", &[4], b"")]
    fn input_fills_what_is_writable(
        #[case] input: &[u8],
        #[case] buffers: &[u32],
        #[case] expected: &[u8],
    ) {
        let chain = chain(&[], buffers);

        let count = receive(&chain, input) as usize;

        assert_eq!(written(&chain, count), expected);
    }

    #[test]
    fn chain_without_a_writable_buffer_receives_nothing() {
        let chain = chain(&[b"readable"], &[]);

        assert_eq!(receive(&chain, b"input"), 0);
    }

    #[test]
    fn writable_buffers_are_not_transmitted() {
        let chain = chain(&[b"text"], &[64]);
        let mut output = Vec::new();

        transmit(&chain, &mut output).unwrap();

        assert_eq!(output, b"text");
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_was_written_whatever_the_layout(
            buffers in vec(vec(any::<u8>(), 1..200), 1..8),
        ) {
            let slices: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            let mut output = Vec::new();

            transmit(&chain(&slices, &[]), &mut output).unwrap();

            prop_assert_eq!(output, buffers.concat());
        }
    }
}
