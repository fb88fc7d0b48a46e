// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One header block of a tar stream, taken apart.

/// Bytes of a block, the unit of a tar stream.
pub(crate) const BLOCK: usize = 512;

/// A field that does not hold what it should.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadField(pub(crate) &'static str);

/// A header block.
pub(crate) struct Header<'b>(pub(crate) &'b [u8; BLOCK]);

impl Header<'_> {
    /// Whether the sum over the block is the one that it states.
    pub(crate) fn checksum_matches(&self) -> bool {
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = self.0[148..156].iter().map(|byte| u32::from(*byte)).sum();
        let expected = sum - field + 8 * u32::from(b' ');
        number(&self.0[148..156]) == Some(i64::from(expected))
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that POSIX headers keep apart; GNU headers use those bytes
    /// otherwise.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = if &self.0[257..263] == b"ustar\0" {
            until_nul(&self.0[345..500])
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(crate) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    /// Permission bits with set-user-ID, set-group-ID and sticky; the type in higher bits that
    /// some writers add is dropped.
    pub(crate) fn mode(&self) -> Result<u32, BadField> {
        let mode = number(&self.0[100..108]).ok_or(BadField("mode"))?;
        u32::try_from(mode & 0o7777).map_err(|_| BadField("mode"))
    }

    pub(crate) fn uid(&self) -> Result<i64, BadField> {
        number(&self.0[108..116]).ok_or(BadField("user id"))
    }

    pub(crate) fn gid(&self) -> Result<i64, BadField> {
        number(&self.0[116..124]).ok_or(BadField("group id"))
    }

    pub(crate) fn size(&self) -> Result<u64, BadField> {
        number(&self.0[124..136])
            .and_then(|size| u64::try_from(size).ok())
            .ok_or(BadField("size"))
    }

    /// Seconds since the epoch; negative before it.
    pub(crate) fn mtime(&self) -> Result<i64, BadField> {
        number(&self.0[136..148]).ok_or(BadField("modification time"))
    }

    /// Major and minor number.
    pub(crate) fn device(&self) -> Result<(u32, u32), BadField> {
        let part = |range: std::ops::Range<usize>| {
            number(&self.0[range])
                .and_then(|value| u32::try_from(value).ok())
                .ok_or(BadField("device number"))
        };
        Ok((part(329..337)?, part(337..345)?))
    }
}

/// A field of a header as a number: octal digits, or GNU's base 256 where the top bit is set. A
/// blank field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        return base_256(field);
    }
    let text = field
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .trim_ascii();
    text.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big-endian; the top bit is a mark, the one below it the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let fill = if negative { -1_i128 } else { 0 };
    let value = std::iter::once(first)
        .chain(field[1..].iter().copied())
        .try_fold(fill, |value, byte| {
            // Fields have 12 bytes at most, 96 bits; more would not fit.
            value.checked_mul(256).map(|value| value | i128::from(byte))
        })?;
    i64::try_from(value).ok()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::octal(b"0000644\0", Some(0o644))]
    #[case::space_padded(b"   644 \0", Some(0o644))]
    #[case::blank(b"\0\0\0\0\0\0\0\0", Some(0))]
    #[case::not_octal(b"0000948\0", None)]
    #[case::negative_text(b"-000001\0", None)]
    #[case::base_256(b"\x80\0\0\0\0\0\x01\0", Some(256))]
    #[case::base_256_minus_one(b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1))]
    #[case::base_256_minus_two(b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2))]
    #[case::base_256_largest(b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX))]
    #[case::base_256_too_large(b"\x80\x80\0\0\0\0\0\0\0", None)]
    fn number_is_read(#[case] field: &[u8], #[case] expected: Option<i64>) {
        assert_eq!(number(field), expected);
    }
}
