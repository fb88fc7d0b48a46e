// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sparse files: which parts of a file an entry's content is (GNU tar's manual, "Sparse Formats").
//!
//! ```text
//! old GNU    the map is in the header, and in blocks after it
//! PAX 0.0    a record for each number of the map
//! PAX 0.1    a record with the whole map
//! PAX 1.0    the map is before the content, in decimal numbers on lines of their own
//! ```

use super::header::{BLOCK, number};

/// A part of a file: where it starts, and how many bytes it has.
pub type Segment = (u64, u64);

/// What a sparse file is made of. All that is in no segment is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Bytes of the whole file.
    pub size: u64,
    /// Parts that the entry's content is, one after another.
    pub segments: Vec<Segment>,
}

/// A map that cannot be honoured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadMap(pub(crate) &'static str);

impl Sparse {
    /// A file of `size` bytes of which `stored` are in these segments.
    pub(crate) fn new(size: u64, segments: Vec<Segment>, stored: u64) -> Result<Self, BadMap> {
        if i64::try_from(size).is_err() {
            return Err(BadMap("the file is larger than any"));
        }
        let mut position = 0_u64;
        let mut sum = 0_u64;
        for (start, length) in &segments {
            // Parts that overlap would make the file depend on their order.
            if *start < position {
                return Err(BadMap("its parts overlap or are not in order"));
            }
            position = start
                .checked_add(*length)
                .filter(|end| *end <= size)
                .ok_or(BadMap("a part is beyond the end of the file"))?;
            sum += length;
        }
        if sum != stored {
            return Err(BadMap("its parts are not as long as the content"));
        }
        Ok(Self { size, segments })
    }
}

/// The map in a block of the old format: its parts, and whether another block follows.
pub(crate) fn old_map(
    block: &[u8; BLOCK],
    is_header: bool,
    segments: &mut Vec<Segment>,
) -> Result<bool, BadMap> {
    let (start, count) = if is_header { (386, 4) } else { (0, 21) };
    let end = start + 24 * count;
    for field in block[start..end].chunks_exact(24) {
        let (offset, length) = field.split_at(12);
        // What is not used is blank.
        if offset[0] == 0 || length[0] == 0 {
            break;
        }
        let value = |field| number(field).and_then(|value| u64::try_from(value).ok());
        match (value(offset), value(length)) {
            (Some(offset), Some(length)) => segments.push((offset, length)),
            _ => return Err(BadMap("it holds what is not a number")),
        }
    }
    Ok(block[end] != 0)
}

/// The size of the whole file in a header of the old format.
pub(crate) fn old_size(block: &[u8; BLOCK]) -> Result<u64, BadMap> {
    number(&block[483..495])
        .and_then(|size| u64::try_from(size).ok())
        .ok_or(BadMap("the size of the file is not a number"))
}

/// The map before the content of a file of format 1.0, as it comes in.
#[derive(Default)]
pub(crate) struct NewMap {
    numbers: Vec<u64>,
    digits: Option<u64>,
}

impl NewMap {
    /// Takes the next block; gives the map once it is whole. What is left of its last block is padding.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, BadMap> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let value = self.digits.unwrap_or(0).checked_mul(10);
                    let value = value.and_then(|value| value.checked_add(digit));
                    self.digits = Some(value.ok_or(BadMap("it holds a number beyond any"))?);
                }
                b'\n' => {
                    let number = self.digits.take();
                    self.numbers
                        .push(number.ok_or(BadMap("it has an empty line"))?);
                    if let Some(map) = self.whole() {
                        return Ok(Some(map));
                    }
                }
                _ => return Err(BadMap("it holds what is not a number")),
            }
        }
        Ok(None)
    }

    /// The map, if there are as many numbers as the first one says.
    fn whole(&self) -> Option<Vec<Segment>> {
        let (count, map) = self.numbers.split_first()?;
        let is_whole = u64::try_from(map.len()).ok()? == count.checked_mul(2)?;
        is_whole.then(|| pairs(map))
    }
}

/// Numbers by two.
pub(crate) fn pairs(numbers: &[u64]) -> Vec<Segment> {
    numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::hole_first(100, &[(90, 10)], 10, Ok(()))]
    #[case::hole_last(100, &[(0, 10), (100, 0)], 10, Ok(()))]
    #[case::nothing_but_a_hole(100, &[], 0, Ok(()))]
    #[case::beside_each_other(20, &[(0, 10), (10, 10)], 20, Ok(()))]
    #[case::overlap(20, &[(0, 10), (9, 10)], 20, Err("its parts overlap or are not in order"))]
    #[case::backwards(20, &[(10, 10), (0, 10)], 20, Err("its parts overlap or are not in order"))]
    #[case::beyond_the_end(19, &[(10, 10)], 10, Err("a part is beyond the end of the file"))]
    #[case::beyond_numbers(100, &[(u64::MAX, 2)], 2, Err("a part is beyond the end of the file"))]
    #[case::more_content(100, &[(0, 10)], 11, Err("its parts are not as long as the content"))]
    #[case::less_content(100, &[(0, 10)], 9, Err("its parts are not as long as the content"))]
    #[case::huge(u64::MAX, &[], 0, Err("the file is larger than any"))]
    fn map_is_checked(
        #[case] size: u64,
        #[case] segments: &[Segment],
        #[case] stored: u64,
        #[case] expected: Result<(), &'static str>,
    ) {
        let outcome = Sparse::new(size, segments.to_vec(), stored);

        assert_eq!(outcome.map(drop).map_err(|BadMap(reason)| reason), expected);
    }

    #[rstest]
    #[case::whole("1\n5\n6\n", Ok(Some(vec![(5, 6)])))]
    #[case::empty("0\n", Ok(Some(vec![])))]
    #[case::goes_on("2\n5\n6\n", Ok(None))]
    #[case::cut_number("1\n5\n6", Ok(None))]
    #[case::padding_is_passed_over("1\n5\n6\n\0\0", Ok(Some(vec![(5, 6)])))]
    #[case::count_beyond_any("18446744073709551615\n1\n", Ok(None))]
    #[case::text("x\n", Err(BadMap("it holds what is not a number")))]
    #[case::empty_line("\n", Err(BadMap("it has an empty line")))]
    #[case::huge("99999999999999999999\n", Err(BadMap("it holds a number beyond any")))]
    fn new_map_is_read(#[case] text: &str, #[case] expected: Result<Option<Vec<Segment>>, BadMap>) {
        assert_eq!(NewMap::default().block(text.as_bytes()), expected);
    }
}
