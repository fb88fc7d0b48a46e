// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets cut anywhere: read from a chain they are what they are in one piece, and a buffer takes
//! a packet however it is cut.
#![no_main]

use arbitrary::Arbitrary;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use coracle_vsock::buffer::{Buffer, Packet, PacketError};
use coracle_vsock::packet::{HEADER_LEN, Header};
use libfuzzer_sys::fuzz_target;

const TABLE: GuestAddress = GuestAddress(0);
const SIZE: u16 = 64;
const PIECES: u64 = 0x1000;
const PIECE: u64 = 0x1000;

#[derive(Arbitrary, Debug)]
struct Input {
    readable: Vec<Vec<u8>>,
    writable: Vec<u16>,
    reply: [u8; 32],
    reply_rest: [u8; 12],
    data: Vec<u8>,
}

/// Puts a chain of these buffers into memory; how many there are.
fn lay_out(memory: &GuestMemory, buffers: impl Iterator<Item = (u32, u16)>) -> u16 {
    let mut count = 0;
    for (len, flags) in buffers {
        let at = u64::from(count);
        let descriptor = Descriptor {
            address: PIECES + at * PIECE,
            len,
            flags: flags | DESC_NEXT,
            next: count + 1,
        };
        memory
            .write_obj(GuestAddress(TABLE.0 + 16 * at), &descriptor)
            .expect("the table is in memory");
        count += 1;
    }
    if let Some(last) = count.checked_sub(1) {
        let flags = GuestAddress(TABLE.0 + 16 * u64::from(last) + 12);
        let old: u16 = memory.read_obj(flags).expect("the table is in memory");
        memory
            .write_obj(flags, &(old & !DESC_NEXT))
            .expect("the table is in memory");
    }
    count
}

fn read(memory: &GuestMemory, chain: &mut Chain, pieces: &[&[u8]]) {
    for (piece, at) in pieces.iter().zip((PIECES..).step_by(PIECE as usize)) {
        memory
            .write(GuestAddress(at), piece)
            .expect("pieces are in memory");
    }
    lay_out(memory, pieces.iter().map(|piece| (piece.len() as u32, 0)));
    if walk(memory, TABLE, SIZE, 0, false, chain).is_err() {
        return;
    }
    let whole = pieces.concat();
    match (Packet::read(chain), whole.split_first_chunk::<HEADER_LEN>()) {
        (Err(PacketError::NoHeader(len)), None) => assert_eq!(len as usize, whole.len()),
        (Ok(mut packet), Some((header, rest))) => {
            assert_eq!(packet.header, Header::from_bytes(header));
            let mut data = vec![0; packet.header.len as usize];
            packet.data.read_exact(&mut data).expect("all of the data");
            assert_eq!(data, rest[..data.len()]);
        }
        (Err(PacketError::NoData { header, held }), Some((_, rest))) => {
            assert_eq!(held as usize, rest.len());
            assert!(header.len > held);
        }
        (read, bytes) => panic!("{read:?} from {bytes:?}"),
    }
}

fn write(memory: &GuestMemory, chain: &mut Chain, lens: &[u32], header: &Header, data: &[u8]) {
    lay_out(memory, lens.iter().map(|&len| (len, DESC_WRITE)));
    if walk(memory, TABLE, SIZE, 0, false, chain).is_err() {
        return;
    }
    let Some(mut buffer) = Buffer::new(chain) else {
        assert!((chain.writable_len() as usize) < HEADER_LEN);
        return;
    };
    let room = buffer.data().remaining();
    assert_eq!(room + HEADER_LEN, chain.writable_len() as usize);
    let data = &data[..data.len().min(room)];
    buffer.data().write_all(data).expect("there is room");
    let written = buffer.finish(header) as usize;

    let mut whole = Vec::new();
    for (&len, at) in lens.iter().zip((PIECES..).step_by(PIECE as usize)) {
        let mut piece = vec![0; len as usize];
        memory
            .read(GuestAddress(at), &mut piece)
            .expect("pieces are in memory");
        whole.extend(piece);
    }
    assert_eq!(whole[..HEADER_LEN], header.to_bytes());
    assert_eq!(&whole[HEADER_LEN..written], data);
}

fuzz_target!(|input: Input| {
    let memory = GuestMemory::anonymous(&[(GuestAddress(0), PIECES + PIECE * u64::from(SIZE))])
        .expect("whole pages");
    let mut chain = Chain::new();
    let most = usize::from(SIZE);

    let pieces: Vec<&[u8]> = input
        .readable
        .iter()
        .take(most)
        .map(|piece| &piece[..piece.len().min(PIECE as usize)])
        .collect();
    read(&memory, &mut chain, &pieces);

    let lens: Vec<u32> = input
        .writable
        .iter()
        .take(most)
        .map(|&len| u32::from(len) % (PIECE as u32 + 1))
        .collect();
    let mut reply = [0; HEADER_LEN];
    reply[..32].copy_from_slice(&input.reply);
    reply[32..].copy_from_slice(&input.reply_rest);
    write(
        &memory,
        &mut chain,
        &lens,
        &Header::from_bytes(&reply),
        &input.data,
    );
});
