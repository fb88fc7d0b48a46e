// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A block request is whatever chain the guest wrote, its bytes included: the storage is asked for nothing outside of
//! the disk and for no more than there are buffers, a read-only disk is not written, and each request that has room for
//! a status gets one.

#![no_main]

mod guest;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::Arbitrary;
use coracle_devices::block::{Disk, Properties, RequestError, Storage, serve};
use coracle_virtio::{Chain, Reader, Writer};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    request: guest::Request,
    /// What the guest wrote into the first readable bytes: mostly a header that makes sense.
    kind: Kind,
    sector: Sector,
    ranges: [(Sector, u16, u8); 2],
    read_only: bool,
    write_through: bool,
    fails: bool,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Known(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Sector {
    Near(u8),
    Any(u64),
}

impl Sector {
    fn number(&self) -> u64 {
        match self {
            Self::Near(sector) => (*sector).into(),
            Self::Any(sector) => *sector,
        }
    }
}

impl Input {
    fn bytes(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Known(kind) => u32::from(kind % 16),
            Kind::Any(kind) => kind,
        };
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(self.sector.number().to_le_bytes());
        for (sector, count, flags) in &self.ranges {
            bytes.extend(sector.number().to_le_bytes());
            bytes.extend(u32::from(*count).to_le_bytes());
            bytes.extend(u32::from(flags % 4).to_le_bytes());
        }
        bytes
    }
}

/// Where nothing is, and what is asked of it is checked.
struct Checked {
    read_only: bool,
    fails: bool,
    written: AtomicBool,
}

impl Checked {
    fn inside(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE));
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
        match self.fails {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    fn changed(&self, offset: u64, len: u64) -> io::Result<()> {
        self.written.store(true, Ordering::Relaxed);
        self.inside(offset, len)
    }
}

impl Storage for Checked {
    fn properties(&self) -> Properties {
        Properties {
            size: SIZE,
            read_only: self.read_only,
            block_size: 512,
            physical_block_size: 4096,
        }
    }

    fn read(&self, buffers: &mut Writer<'_>, offset: u64, len: usize) -> io::Result<()> {
        assert!(len < buffers.remaining());
        self.inside(offset, len as u64)?;
        assert_eq!(buffers.write(&vec![0xa5; len]), len);
        Ok(())
    }

    fn write(&self, buffers: &mut Reader<'_>, offset: u64, len: usize) -> io::Result<()> {
        assert_eq!(buffers.remaining(), len);
        assert_eq!(buffers.read(&mut vec![0; len]), len);
        self.changed(offset, len as u64)
    }

    fn flush(&self) -> io::Result<()> {
        self.inside(0, 0)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.changed(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.changed(offset, len)
    }
}

/// Writes what the guest says into the buffers that it gave to be read.
fn fill(chain: &Chain, bytes: &[u8]) {
    let mut left = bytes;
    for range in chain.readable().iovecs(bytes.len()) {
        let (part, rest) = left.split_at(range.iov_len.min(left.len()));
        // SAFETY: the chain keeps the memory mapped, and this is the only thread.
        unsafe { std::ptr::copy(part.as_ptr(), range.iov_base.cast(), part.len()) };
        left = rest;
    }
}

fuzz_target!(|input: Input| {
    let Ok(chain) = input.request.chain() else {
        return;
    };
    fill(&chain, &input.bytes());
    let disk = Disk {
        size: SIZE,
        read_only: input.read_only,
        id: *b"a serial number of20",
    };
    let storage = Checked {
        read_only: input.read_only,
        fails: input.fails,
        written: AtomicBool::new(false),
    };

    let answer = serve(&chain, &disk, &storage, input.write_through);

    assert!(answer.written <= chain.writable_len());
    let has_room = chain.writable_len() > 0;
    let has_no_status = matches!(answer.outcome, Err(RequestError::NoStatus));
    assert_eq!(has_room, !has_no_status);
    assert!(!(input.read_only && storage.written.into_inner()));
});
