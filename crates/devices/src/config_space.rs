// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading a device's configuration space (virtio 1.3, section 2.5).

/// Gives the driver the bytes of `space` from `offset` on, as many as `data` has room for. What lies past the end of the
/// space is left as it is: zeroes.
pub(crate) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let field = space.get(from..).unwrap_or_default();
    let count = field.len().min(data.len());
    data[..count].copy_from_slice(&field[..count]);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::start(0, [1, 2, 3, 4])]
    #[case::inside(2, [3, 4, 5, 6])]
    #[case::across_the_end(4, [5, 6, 0, 0])]
    #[case::at_the_end(6, [0; 4])]
    #[case::far_out(u64::MAX, [0; 4])]
    fn what_is_past_the_end_reads_as_zero(#[case] offset: u64, #[case] expected: [u8; 4]) {
        let mut data = [0; 4];

        read(&[1, 2, 3, 4, 5, 6], offset, &mut data);

        assert_eq!(data, expected);
    }
}
