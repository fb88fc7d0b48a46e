// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes of the guest's that the host's socket would not take yet.
//!
//! Empty as long as the host keeps up: data then goes from guest memory into the socket directly.
//! Credit bounds it (see [`crate::credit::Inbound`]); memory is held only while there is a backlog.

use std::collections::VecDeque;
use std::io::IoSlice;

/// Memory that is kept when the backlog has run dry, in bytes, so that a host that is slow by a
/// little does not cost an allocation each time.
const KEPT: usize = 16 * 1024;

/// The bytes, in order.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    /// Bytes at the head that are ours, not the guest's, and so no matter of credit.
    greeting: usize,
}

impl Backlog {
    /// A backlog that begins with a line of ours.
    pub fn with_greeting(line: &str) -> Self {
        Self {
            bytes: line.bytes().collect(),
            greeting: line.len(),
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds `len` bytes, which `fill` writes in one or two pieces.
    ///
    /// # Errors
    ///
    /// The error of `fill`; nothing is added then.
    pub fn append<E>(
        &mut self,
        len: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.bytes.len();
        self.bytes.resize(before + len, 0);
        let (head, tail) = self.bytes.as_mut_slices();
        let (new_head, new_tail) = match before.checked_sub(head.len()) {
            Some(in_tail) => (&mut [][..], &mut tail[in_tail..]),
            None => (&mut head[before..], tail),
        };
        let filled = fill(new_head).and_then(|()| fill(new_tail));
        if filled.is_err() {
            self.bytes.truncate(before);
        }
        filled
    }

    /// What to write, in order.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (head, tail) = self.bytes.as_slices();
        [IoSlice::new(head), IoSlice::new(tail)]
    }

    /// The first `len` bytes were written. Returns how many of them were the guest's.
    pub fn consume(&mut self, len: usize) -> usize {
        let len = len.min(self.bytes.len());
        self.bytes.drain(..len);
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT {
            self.bytes = VecDeque::new();
        }
        let greeting = len.min(self.greeting);
        self.greeting -= greeting;
        len - greeting
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn append(backlog: &mut Backlog, mut bytes: &[u8]) {
        let Ok(()) = backlog.append::<Infallible>(bytes.len(), |into| {
            let (now, later) = bytes.split_at(into.len());
            into.copy_from_slice(now);
            bytes = later;
            Ok(())
        });
    }

    fn contents(backlog: &Backlog) -> Vec<u8> {
        backlog
            .slices()
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn greeting_goes_first_and_is_not_counted_as_the_guests() {
        let mut backlog = Backlog::with_greeting("OK 1\n");
        append(&mut backlog, b"data");

        assert_eq!(contents(&backlog), b"OK 1\ndata");
        assert_eq!(backlog.consume(3), 0);
        assert_eq!(backlog.consume(4), 2);
        assert_eq!(backlog.consume(2), 2);
        assert!(backlog.is_empty());
    }

    #[test]
    fn bytes_that_could_not_be_read_are_not_added() {
        let mut backlog = Backlog::default();

        assert_eq!(backlog.append(4, |_| Err("gone")), Err("gone"));

        assert!(backlog.is_empty());
    }

    #[test]
    fn memory_is_given_back_once_it_has_run_dry() {
        let mut backlog = Backlog::default();
        append(&mut backlog, &vec![1; KEPT + 1]);

        backlog.consume(KEPT + 1);

        assert!(backlog.bytes.capacity() <= KEPT);
    }

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            steps in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40), 0_usize..40), 0..40)
        ) {
            let mut backlog = Backlog::default();
            let mut came = Vec::new();
            let mut left = Vec::new();

            for (bytes, take) in steps {
                append(&mut backlog, &bytes);
                came.extend(bytes);
                let next: Vec<u8> = contents(&backlog).into_iter().take(take).collect();
                prop_assert_eq!(backlog.consume(take), next.len());
                left.extend(next);
            }
            left.extend(contents(&backlog));

            prop_assert_eq!(left, came);
        }
    }
}
