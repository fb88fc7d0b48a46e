// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets in guest memory: a header and data, scattered over any number of descriptors.
//!
//! A header may be cut anywhere, and may share a descriptor with data: section 2.7.4 forbids a
//! device to assume otherwise, and Linux drivers have changed their layout more than once.

use coracle_virtio::{Chain, Reader, Writer};

use crate::packet::{HEADER_LEN, Header};

/// A packet that the guest sent.
#[derive(Debug)]
pub struct Packet<'c> {
    /// The header, decoded from a copy.
    pub header: Header,
    /// At the first byte of the data; holds all of it, and perhaps more.
    pub data: Reader<'c>,
}

/// A chain of the transmit queue that holds no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// It ends before the header does.
    #[error("a packet of {0} bytes has no room for a header")]
    NoHeader(u32),
    /// It ends before the data does.
    #[error("a packet announces {announced} bytes of data and holds {held}", announced = header.len)]
    NoData {
        /// The header.
        header: Header,
        /// Bytes of data that there are.
        held: u32,
    },
}

impl<'c> Packet<'c> {
    /// Reads the packet that a chain holds.
    ///
    /// # Errors
    ///
    /// [`PacketError`] if it does not hold a whole one.
    pub fn read(chain: &'c Chain) -> Result<Self, PacketError> {
        let mut data = chain.readable();
        let mut bytes = [0; HEADER_LEN];
        data.read_exact(&mut bytes)
            .map_err(|_| PacketError::NoHeader(chain.readable_len()))?;
        let header = Header::from_bytes(&bytes);
        let held = chain.readable_len().saturating_sub(HEADER_LEN as u32);
        if header.len > held {
            return Err(PacketError::NoData { header, held });
        }
        Ok(Self { header, data })
    }
}

/// Room for a packet that the guest gave.
#[derive(Debug)]
pub struct Buffer<'c> {
    head: Writer<'c>,
    data: Writer<'c>,
}

impl<'c> Buffer<'c> {
    /// The room in a chain; `None` if not even a header fits.
    pub fn new(chain: &'c Chain) -> Option<Self> {
        let mut data = chain.writable();
        data.skip(HEADER_LEN).ok()?;
        Some(Self {
            head: chain.writable(),
            data,
        })
    }

    /// Where the data goes. It is to be written before the header is.
    pub const fn data(&mut self) -> &mut Writer<'c> {
        &mut self.data
    }

    /// Writes the header. Returns the bytes written in all, which is what the guest is to be told.
    pub fn finish(mut self, header: &Header) -> u32 {
        // `new` has checked that it fits.
        let _ = self.head.write_all(&header.to_bytes());
        self.data.written()
    }
}

#[cfg(test)]
mod tests {
    use coracle_memory::GuestAddress;
    use coracle_virtio::testing::{self, Driver, Used};
    use rstest::rstest;

    use super::*;

    const HEADER: Header = Header {
        src_cid: 2,
        dst_cid: 3,
        src_port: 4,
        dst_port: 5,
        len: 6,
        socket_type: 1,
        op: 5,
        flags: 0,
        buf_alloc: 7,
        fwd_cnt: 8,
    };

    /// Hands a chain with these buffers to `work`, and returns it to the driver.
    fn with_chain(readable: &[&[u8]], writable: &[u32], work: impl FnOnce(&Chain) -> u32) -> Used {
        let memory = testing::memory(0x10000);
        let mut driver = Driver::new(&memory, GuestAddress(0), 0x10000, 128).unwrap();
        let mut queue = driver.queue(0).unwrap();
        driver.add(readable, writable).unwrap();
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        let written = work(&chain);
        queue.add_used(chain.head(), written).unwrap();
        driver.used().unwrap().unwrap()
    }

    #[rstest]
    #[case::in_one_piece(50)]
    #[case::header_apart(44)]
    #[case::header_cut(20)]
    #[case::data_cut(47)]
    fn packet_is_the_same_wherever_it_is_cut(#[case] cut: usize) {
        let mut bytes = HEADER.to_bytes().to_vec();
        bytes.extend(b"abcdef");
        let (head, tail) = bytes.split_at(cut);
        let pieces: Vec<&[u8]> = [head, tail]
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .collect();

        with_chain(&pieces, &[], |chain| {
            let mut packet = Packet::read(chain).unwrap();
            let mut data = [0; 6];
            packet.data.read_exact(&mut data).unwrap();
            assert_eq!(packet.header, HEADER);
            assert_eq!(&data, b"abcdef");
            0
        });
    }

    #[test]
    fn packet_that_ends_in_its_header_is_none() {
        with_chain(&[&HEADER.to_bytes()[..43]], &[], |chain| {
            let error = Packet::read(chain).unwrap_err();
            assert_eq!(error, PacketError::NoHeader(43));
            0
        });
    }

    #[test]
    fn packet_that_ends_in_its_data_names_its_header() {
        with_chain(&[&HEADER.to_bytes(), b"abcde"], &[], |chain| {
            let error = Packet::read(chain).unwrap_err();
            let header = HEADER;
            assert_eq!(error, PacketError::NoData { header, held: 5 });
            assert_eq!(
                error.to_string(),
                "a packet announces 6 bytes of data and holds 5"
            );
            0
        });
    }

    #[rstest]
    #[case::in_one_piece(&[50])]
    #[case::header_apart(&[44, 6])]
    #[case::header_cut(&[20, 30])]
    #[case::data_cut(&[47, 100])]
    fn buffer_takes_a_packet_wherever_it_is_cut(#[case] pieces: &[u32]) {
        let used = with_chain(&[], pieces, |chain| {
            let mut buffer = Buffer::new(chain).unwrap();
            buffer.data().write_all(b"abcdef").unwrap();
            buffer.finish(&HEADER)
        });

        assert_eq!(used.len, 50);
        assert_eq!(used.data[..HEADER_LEN], HEADER.to_bytes());
        assert_eq!(&used.data[HEADER_LEN..], b"abcdef");
    }

    #[test]
    fn buffer_smaller_than_a_header_is_none() {
        with_chain(&[], &[20, 23], |chain| {
            assert!(Buffer::new(chain).is_none());
            0
        });
    }
}
