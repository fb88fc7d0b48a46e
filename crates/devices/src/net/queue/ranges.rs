// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a packet is, as a system call takes it: a header of ours, then buffers of the guest.

use super::header::{HEADER_LEN, Header};

/// A list of ranges, kept from packet to packet so that nothing is allocated for one.
///
/// The first is a header's, and none of the others holds one.
#[derive(Debug)]
pub(super) struct Ranges(Vec<libc::iovec>);

// SAFETY: addresses as plain data; whoever reads or writes through them needs `unsafe`.
unsafe impl Send for Ranges {}

impl Ranges {
    pub(super) fn new() -> Self {
        Self(vec![range(&mut [])])
    }

    /// Adds ranges at the end.
    pub(super) fn extend(&mut self, ranges: &[libc::iovec]) {
        self.0.extend_from_slice(ranges);
    }

    /// Removes the first `count` behind the header's.
    pub(super) fn remove(&mut self, count: usize) {
        self.0.drain(1..=count);
    }

    /// Keeps the first `count` behind the header's.
    pub(super) fn truncate(&mut self, count: usize) {
        self.0.truncate(1 + count);
    }

    /// Takes a header's length away from the first ranges, which have as many bytes: the header is
    /// ours and goes into the buffers by itself. What is left of a range may be nothing.
    pub(super) fn cut_header(&mut self) {
        let mut left = HEADER_LEN;
        for range in self.0.iter_mut().skip(1) {
            let cut = left.min(range.iov_len);
            range.iov_base = range.iov_base.wrapping_byte_add(cut);
            range.iov_len -= cut;
            left -= cut;
            if left == 0 {
                return;
            }
        }
    }

    /// All of them, with `header` as the first.
    pub(super) fn with_header(&mut self, header: &mut Header) -> &[libc::iovec] {
        self.0[0] = range(&mut header.0);
        &self.0
    }
}

/// Bytes of ours as a range.
pub(super) const fn range(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}
