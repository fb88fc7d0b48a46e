// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A region of guest memory into a file, without its empty pages.

use std::fs::File;
use std::ops::Range;

use coracle_memory::{GuestAddress, GuestMemory, Region};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{DumpError, write_at};

const PAGE: usize = 4096;
/// Bytes read at a time.
const BLOCK: usize = 64 * PAGE;

/// A region on its way into a file.
pub(super) struct Pages<'m> {
    memory: &'m GuestMemory,
    region: &'m Region,
    block: Vec<u8>,
    done: u64,
    /// Where there may be something, up to its end.
    data: Range<u64>,
}

impl<'m> Pages<'m> {
    pub(super) fn new(memory: &'m GuestMemory, region: &'m Region) -> Self {
        Self {
            memory,
            region,
            block: vec![0; BLOCK],
            done: 0,
            data: 0..0,
        }
    }

    /// Writes the next pages to `file`, where the region begins at `offset`, and shows each that is not empty, by its
    /// guest-physical address. `false`: there are no more.
    pub(super) fn write_block(
        &mut self,
        file: &File,
        offset: u64,
        show: &mut impl FnMut(u64, &[u8]),
    ) -> Result<bool, DumpError> {
        if self.done >= self.data.end {
            match next_data(self.region, self.done) {
                Some(next) if self.done < self.region.len() => self.data = next,
                _ => return Ok(false),
            }
            self.done = self.data.start;
        }
        let left = self.data.end - self.done;
        let length = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        let block = &mut self.block[..length];
        // Within the region, so it does not wrap.
        let address = self.region.start().0.saturating_add(self.done);
        self.memory
            .read(GuestAddress(address), block)
            .map_err(DumpError::Read)?;
        for (at, page) in (0..).step_by(PAGE).zip(block.chunks(PAGE)) {
            if !is_empty(page) {
                show(address + at, page);
            }
        }
        for (at, run) in runs(block) {
            write_at(file, offset + self.done + at, run)?;
        }
        self.done += length as u64;
        Ok(true)
    }
}

/// Whether a page, or the beginning of one, is of zeroes. To compare is many times faster than to look at each byte.
fn is_empty(page: &[u8]) -> bool {
    const EMPTY: [u8; PAGE] = [0; PAGE];
    EMPTY.starts_with(page)
}

/// Pages that are not empty, as far as they follow each other, with their offset in `block`.
fn runs(block: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = block.get(at..)?;
        let skipped = rest.chunks(PAGE).take_while(|page| is_empty(page)).count() * PAGE;
        let rest = rest.get(skipped..)?;
        let pages = rest.chunks(PAGE).take_while(|page| !is_empty(page)).count();
        let run = &rest[..rest.len().min(pages * PAGE)];
        let begin = at + skipped;
        at = begin + run.len();
        (!run.is_empty()).then_some((begin as u64, run))
    })
}

/// The next pages from `done` on that may hold something, at least one. To read a hole of a memory file would fill it.
fn next_data(region: &Region, done: u64) -> Option<Range<u64>> {
    let Some((file, base)) = region.file() else {
        return Some(done..region.len());
    };
    let from = base.checked_add(done)?;
    let begin = match seek(file, SeekFrom::Data(from)) {
        Ok(begin) => begin,
        // Nothing but a hole up to the file's end.
        Err(Errno::NXIO) => return None,
        // A file that cannot tell its holes.
        Err(_) => return Some(done..region.len()),
    };
    let end = seek(file, SeekFrom::Hole(begin)).unwrap_or(u64::MAX);
    let begin = begin.checked_sub(base)? / PAGE as u64 * PAGE as u64;
    let begin = begin.max(done);
    let end = end
        .saturating_sub(base)
        .checked_next_multiple_of(PAGE as u64)
        .map_or(region.len(), |end| end.min(region.len()));
    (begin < end).then_some(begin..end)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn block(pages: &[u8]) -> Vec<u8> {
        pages.iter().flat_map(|byte| [*byte; PAGE]).collect()
    }

    #[rstest]
    #[case::nothing(&[], &[])]
    #[case::empty(&[0, 0], &[])]
    #[case::full(&[1, 2], &[(0, 2)])]
    #[case::between(&[0, 1, 2, 0], &[(1, 2)])]
    #[case::two(&[1, 0, 0, 1], &[(0, 1), (3, 1)])]
    fn runs_are_what_is_not_empty(#[case] pages: &[u8], #[case] expected: &[(u64, usize)]) {
        let block = block(pages);

        let found: Vec<_> = runs(&block)
            .map(|(at, run)| (at / PAGE as u64, run.len() / PAGE))
            .collect();

        assert_eq!(found, expected);
    }

    #[test]
    fn last_page_may_be_cut() {
        let found: Vec<_> = runs(&block(&[0, 1])[..PAGE + 7])
            .map(|(at, run)| (at, run.len()))
            .collect();

        assert_eq!(found, [(PAGE as u64, 7)]);
    }
}
