// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One packet that the driver sends: a chain in, what the tap is given out.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use coracle_virtio::Chain;
use thiserror::Error;

use super::header::{HEADER_LEN, Header, MAX_PACKET, MIN_PACKET, Offloads};
use super::ranges::Ranges;

/// A packet that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Too short for its headers, or too long for any network.
    #[error("a packet of {0} bytes, not {MIN_PACKET} to {MAX_PACKET}")]
    Length(u32),
    /// Work left to us that was not agreed on.
    #[error(
        "a packet with flags {flags:#x} and segmentation {gso_type:#x}, which were not agreed on"
    )]
    Offload {
        /// The header's flags.
        flags: u8,
        /// The header's kind of segmentation.
        gso_type: u8,
    },
}

/// Makes packets of chains. It keeps no packet, only room for the next one's ranges.
#[derive(Debug)]
pub struct Sender {
    offloads: Offloads,
    header: Header,
    ranges: Ranges,
}

impl Sender {
    /// For a driver that may leave `offloads` to the device.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        Self {
            offloads,
            header: Header::default(),
            ranges: Ranges::new(),
        }
    }

    /// The packet in the device-readable part of `chain`, header first; the rest of the chain is
    /// ignored. The header is copied once, and what is checked is what is sent.
    ///
    /// # Errors
    ///
    /// [`PacketError`] for a packet that no network takes, or whose header asks for an offload that
    /// was not agreed on.
    pub fn packet<'a>(&'a mut self, chain: &'a Chain) -> Result<Outgoing<'a>, PacketError> {
        let len = chain.readable_len();
        let mut reader = chain.readable();
        let is_possible = (MIN_PACKET..=MAX_PACKET).contains(&reader.remaining());
        if !is_possible || reader.read_exact(&mut self.header.0).is_err() {
            return Err(PacketError::Length(len));
        }
        if !self.header.is_within(self.offloads) {
            let (flags, gso_type) = self.header.offloads();
            return Err(PacketError::Offload { flags, gso_type });
        }
        self.header.make_outgoing();
        self.ranges.truncate(0);
        self.ranges.extend(reader.iovecs(MAX_PACKET));
        Ok(Outgoing {
            len: HEADER_LEN + reader.remaining(),
            ranges: self.ranges.with_header(&mut self.header),
        })
    }
}

/// A packet that may be sent. Its buffers stay mapped as long as it is there.
#[derive(Debug)]
pub struct Outgoing<'a> {
    ranges: &'a [libc::iovec],
    len: usize,
}

impl Outgoing<'_> {
    /// Its bytes, header included: at most [`MAX_PACKET`].
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never: it has a header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes it to `file` in one system call.
    ///
    /// # Errors
    ///
    /// As for `writev(2)`: with more than 1024 buffers `EINVAL`, and then nothing was written.
    pub fn write_to(&self, file: impl AsFd) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.ranges.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the first range is the sender's header, and the chain keeps the memory of the
        // others mapped; both are borrowed. The kernel only reads from them.
        let done = unsafe { libc::writev(file.as_fd().as_raw_fd(), self.ranges.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::net::queue::testing::{HEADER, link};
    use crate::testing::chain;

    fn sender() -> Sender {
        Sender::new(Offloads::default())
    }

    /// What the tap is given for a packet in these buffers.
    fn sent(buffers: &[&[u8]]) -> Result<Vec<u8>, PacketError> {
        let chain = chain(buffers, &[]);
        let (ours, theirs) = link();
        let written = sender().packet(&chain)?.write_to(ours).unwrap();
        let mut bytes = vec![0; MAX_PACKET];
        let read = File::from(theirs).read(&mut bytes).unwrap();
        assert_eq!(written, read);
        bytes.truncate(read);
        Ok(bytes)
    }

    #[rstest]
    #[case::header_of_its_own(&[12, 60])]
    #[case::header_and_frame_together(&[72])]
    #[case::header_split(&[1, 10, 1, 60])]
    #[case::header_runs_into_the_frame(&[5, 30, 37])]
    #[case::shortest(&[26])]
    #[case::longest(&[MAX_PACKET])]
    fn packet_goes_out_as_it_is(#[case] buffers: &[usize]) {
        let mut packet = HEADER.to_vec();
        packet.extend((0..MAX_PACKET).map(|at| (at % 251) as u8));
        packet.truncate(buffers.iter().sum());
        let mut rest = &packet[..];
        let parts: Vec<&[u8]> = buffers
            .iter()
            .map(|len| rest.split_off(..*len).unwrap())
            .collect();

        assert_eq!(sent(&parts).unwrap(), packet);
    }

    #[rstest]
    #[case::one_byte(&[0; 1])]
    #[case::part_of_a_header(&[0; HEADER_LEN - 1])]
    #[case::header_alone(&[0; HEADER_LEN])]
    #[case::part_of_a_frame_header(&[0; MIN_PACKET - 1])]
    #[case::longer_than_any(&[0; MAX_PACKET + 1])]
    fn packet_of_impossible_length_is_refused(#[case] packet: &[u8]) {
        let len = u32::try_from(packet.len()).unwrap();

        assert_eq!(sent(&[packet]), Err(PacketError::Length(len)));
    }

    #[test]
    fn chain_with_nothing_to_read_is_refused() {
        let chain = chain(&[], &[2000]);

        let error = sender().packet(&chain).unwrap_err();

        assert_eq!(error, PacketError::Length(0));
    }

    #[test]
    fn offload_that_was_not_agreed_on_is_refused() {
        let mut packet = [0; 100];
        packet[..2].copy_from_slice(&[1, 4]);

        let error = sent(&[&packet]).unwrap_err();

        let expected = PacketError::Offload {
            flags: 1,
            gso_type: 4,
        };
        assert_eq!(error, expected);
    }

    proptest! {
        #[test]
        fn what_is_sent_does_not_depend_on_the_buffers(frame in vec(any::<u8>(), 14..2000), cuts in vec(1usize..300, 0..20)) {
            let packet = [&HEADER[..], &frame].concat();
            let mut rest = &packet[..];
            let mut parts: Vec<&[u8]> = cuts
                .iter()
                .map_while(|cut| rest.split_off(..*cut))
                .collect();
            parts.extend((!rest.is_empty()).then_some(rest));

            prop_assert_eq!(sent(&parts).unwrap(), packet);
        }
    }
}
