// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ethernet frames, with what the kernel looks at filled in.

pub const GUEST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x17];
pub const HOST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// Ethernet types: one for experiments, and IP.
const EXPERIMENT: u16 = 0x88b5;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Who sent a frame.
pub fn source(frame: &[u8]) -> [u8; 6] {
    frame[6..12].try_into().unwrap()
}

fn ethernet(from: [u8; 6], kind: u16) -> Vec<u8> {
    let to = if from == GUEST { HOST } else { GUEST };
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

fn text(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(|at| (at % 251) as u8)
}

/// A frame of `len` bytes.
pub fn frame(from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = ethernet(from, EXPERIMENT);
    frame.extend(text(len.saturating_sub(frame.len())));
    frame
}

/// A frame of 60 bytes with a number in it.
pub fn numbered(from: [u8; 6], number: u32) -> Vec<u8> {
    let mut frame = frame(from, 60);
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

/// The number in it.
pub fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[14..18].try_into().unwrap())
}

/// A packet over IP, its checksum left to others, and where that starts and is.
pub struct Packet {
    pub frame: Vec<u8>,
    pub checksum_start: u16,
    pub checksum_offset: u16,
    /// Where the payload starts.
    pub payload: u16,
}

/// TCP or UDP over IPv4 or IPv6, with `len` bytes in it.
pub fn packet(from: [u8; 6], is_v6: bool, protocol: u8, len: usize) -> Packet {
    let header = if protocol == TCP { 20 } else { 8 };
    let segment = u16::try_from(header + len).unwrap();
    let (mut frame, addresses) = if is_v6 {
        let mut frame = ethernet(from, IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(segment.to_be_bytes());
        frame.extend([protocol, 64]);
        let addresses: Vec<u8> = [[0xfd; 15], [0xfd; 15]]
            .iter()
            .zip([1, 2])
            .flat_map(|(net, host)| net.iter().copied().chain([host]))
            .collect();
        frame.extend(&addresses);
        (frame, addresses)
    } else {
        let mut frame = ethernet(from, IPV4);
        let addresses = vec![10, 0, 0, 1, 10, 0, 0, 2];
        let mut ip = vec![0x45, 0];
        ip.extend((20 + segment).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        ip.extend(&addresses);
        let sum = !sum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        (frame, addresses)
    };
    let start = frame.len();
    let pseudo = sum(&[
        &addresses[..],
        &u32::from(segment).to_be_bytes(),
        &[0, 0, 0, protocol],
    ]
    .concat());
    frame.extend([0x30, 0x39, 0, 80]);
    let offset = if protocol == TCP {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
        frame.extend(pseudo.to_be_bytes());
        frame.extend([0, 0]);
        16
    } else {
        frame.extend(segment.to_be_bytes());
        frame.extend(pseudo.to_be_bytes());
        6
    };
    let payload = u16::try_from(frame.len()).unwrap();
    frame.extend(text(len));
    Packet {
        frame,
        checksum_start: u16::try_from(start).unwrap(),
        checksum_offset: offset,
        payload,
    }
}

impl Packet {
    /// The header that says so: flags, segmentation, and the size of a segment.
    pub fn header(&self, gso_type: u8, gso_size: u16) -> [u8; 10] {
        let mut header = [0; 10];
        header[..2].copy_from_slice(&[1, gso_type]);
        header[2..4].copy_from_slice(&self.payload.to_le_bytes());
        header[4..6].copy_from_slice(&gso_size.to_le_bytes());
        header[6..8].copy_from_slice(&self.checksum_start.to_le_bytes());
        header[8..10].copy_from_slice(&self.checksum_offset.to_le_bytes());
        header
    }

    /// Whether the checksum of this frame, which is the packet or came of it, is right.
    pub fn is_checksum_right(&self, frame: &[u8]) -> bool {
        let start = usize::from(self.checksum_start);
        let addresses = if start == 34 { 26..34 } else { 22..54 };
        let segment = &frame[start..];
        let protocol = if self.checksum_offset == 16 { TCP } else { UDP };
        let len = u32::try_from(segment.len()).unwrap();
        let pseudo = [
            &frame[addresses],
            &len.to_be_bytes(),
            &[0, 0, 0, protocol],
            segment,
        ];
        sum(&pseudo.concat()) == 0xffff
    }
}

/// The Internet checksum, before it is inverted.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
