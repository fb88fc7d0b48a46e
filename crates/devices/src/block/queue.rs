// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One block request: a chain in, what it asks for and its answer out.

use std::io;

use coracle_virtio::{Chain, Reader, TransferError, Writer};

/// Bytes of a sector, the unit of the protocol whatever the disk's block size is.
pub const SECTOR: u64 = 512;
/// The most ranges in one request to discard.
pub const MAX_RANGES: usize = 16;
/// The most ranges in one request to write zeroes, which some storage has to write one by one.
pub const MAX_ZERO_RANGES: usize = 1;
/// The most sectors in a range: 32 MiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 16;
/// The most bytes of data in a request, about 32 MiB: what the driver is told by the largest number of buffers and their
/// largest size. Whoever resets the device or ends the machine waits for a request that is under way; and buffers may
/// overlap, so that without a bound one chain could have 4 GiB.
pub const MAX_DATA: u32 = 254 << 17;
/// The length of a disk's name in the answer to a request for it.
pub(super) const ID_LEN: usize = 20;

/// Type, a reserved word, and the sector.
const HEADER_LEN: usize = 16;
/// Sector, number of sectors, flags.
const RANGE_LEN: usize = 16;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// The only flag of a range: what is zeroed may be given back to the host.
const RANGE_UNMAP: u32 = 1;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// What is the same for a disk's whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Size in bytes: a multiple of [`SECTOR`].
    pub size: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// The smallest unit that it reads and writes without further ado, in bytes: a power of two from [`SECTOR`] on.
    pub block_size: u32,
    /// The unit that it is organised in, in bytes: `block_size` or a power of two above.
    pub physical_block_size: u32,
}

/// Where a disk's bytes are. Offsets and lengths are in bytes, multiples of [`SECTOR`], and inside of the disk's size.
///
/// Each call does all of its work before it returns, on the thread of the device's worker.
pub trait Storage: Send + Sync {
    /// What the disk is like.
    fn properties(&self) -> Properties;

    /// Reads `len` bytes at `offset` into `buffers`, which have room for them.
    ///
    /// # Errors
    ///
    /// What keeps any of the bytes from being read.
    fn read(&self, buffers: &mut Writer<'_>, offset: u64, len: usize) -> io::Result<()>;

    /// Writes `len` bytes of `buffers`, which have them, to `offset`.
    ///
    /// # Errors
    ///
    /// What keeps any of the bytes from being written.
    fn write(&self, buffers: &mut Reader<'_>, offset: u64, len: usize) -> io::Result<()>;

    /// Returns once all that was written is where it survives a loss of power.
    ///
    /// # Errors
    ///
    /// What keeps it from getting there.
    fn flush(&self) -> io::Result<()>;

    /// Gives the `len` bytes at `offset` back to the host. What they read as afterwards is open.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if the storage has no such operation, or what keeps it from being done.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Writes zeroes to the `len` bytes at `offset`. With `unmap` they may be given back to the host, as long as they
    /// read as zeroes.
    ///
    /// # Errors
    ///
    /// What keeps any of the bytes from being zeroed.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// A disk as requests see it.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Its size in bytes.
    pub size: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Its name, padded with NUL.
    pub id: [u8; ID_LEN],
}

/// What a chain asks for, checked against the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the writable part but its last byte.
    Read {
        /// From this byte of the disk on.
        offset: u64,
        /// This many bytes.
        len: usize,
    },
    /// Store the readable part behind the header.
    Write {
        /// At this byte of the disk.
        offset: u64,
        /// This many bytes.
        len: usize,
    },
    /// Make what was written last.
    Flush,
    /// Tell the disk's name.
    GetId,
    /// Give ranges back to the host.
    Discard(Ranges),
    /// Zero ranges.
    WriteZeroes(Ranges),
}

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// Whether it may be given back to the host.
    pub unmap: bool,
}

/// The ranges of one request: at most [`MAX_RANGES`], or [`MAX_ZERO_RANGES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    list: [Range; MAX_RANGES],
    count: usize,
}

impl Ranges {
    /// The ranges, in the request's order.
    pub fn as_slice(&self) -> &[Range] {
        &self.list[..self.count]
    }
}

/// A request that is refused for what it says. All of it is the driver's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not even a header.
    #[error("a request has no header: {0}")]
    Header(TransferError),
    /// No such request in the protocol, or not for this disk.
    #[error("a request of type {0} is unknown")]
    Type(u32),
    /// A request to change a disk that cannot be written.
    #[error("a request is to write to a read-only disk")]
    ReadOnly,
    /// Data that is not in whole sectors.
    #[error("a request has {0} bytes of data, not whole sectors")]
    PartOfSector(usize),
    /// More data than the driver was told.
    #[error("a request has {0} bytes of data, more than {MAX_DATA}")]
    TooLong(usize),
    /// Not inside of the disk.
    #[error("a request for {len} bytes at sector {sector} goes past the end of the disk")]
    OutOfRange {
        /// Where it starts.
        sector: u64,
        /// How long it is in bytes.
        len: u64,
    },
    /// Ranges that are cut off, none or too many.
    #[error(
        "a request has {0} bytes of ranges of {RANGE_LEN} bytes: a part of one, none or too many"
    )]
    Ranges(usize),
    /// A range that is longer than the driver was told.
    #[error("a request has a range of {0} sectors, more than {MAX_RANGE_SECTORS}")]
    LongRange(u32),
    /// Flags that do not exist, or not for this request.
    #[error("a request has a range with unknown flags {0:#x}")]
    Flags(u32),
}

impl Refusal {
    fn status(self) -> u8 {
        match self {
            Self::Type(_) | Self::Flags(_) => STATUS_UNSUPPORTED,
            Self::Header(_)
            | Self::ReadOnly
            | Self::PartOfSector(_)
            | Self::TooLong(_)
            | Self::OutOfRange { .. }
            | Self::Ranges(_)
            | Self::LongRange(_) => STATUS_IO_ERROR,
        }
    }
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no byte to put the status into, so the driver learns nothing.
    #[error("a request has no room for its status")]
    NoStatus,
    /// It was not even tried.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The storage failed.
    #[error("the disk cannot {action}")]
    Storage {
        /// What was asked of it.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl RequestError {
    fn status(&self) -> u8 {
        match self {
            Self::NoStatus => STATUS_IO_ERROR,
            Self::Refused(refusal) => refusal.status(),
            Self::Storage { source, .. } if source.kind() == io::ErrorKind::Unsupported => {
                STATUS_UNSUPPORTED
            }
            Self::Storage { .. } => STATUS_IO_ERROR,
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Answer {
    /// How many bytes were written to the chain from its start on: what the used ring is told.
    pub written: u32,
    /// Whether the request was done. The driver has been told in the chain.
    pub outcome: Result<(), RequestError>,
}

/// Reads what `chain` asks for. Nothing is read from the chain's header and ranges a second time, so the driver gains
/// nothing by changing them.
///
/// # Errors
///
/// [`Refusal`], if `disk` can or may not do it.
pub fn parse(chain: &Chain, disk: &Disk) -> Result<Request, Refusal> {
    let mut reader = chain.readable();
    let header: [u8; HEADER_LEN] = reader.read_obj().map_err(Refusal::Header)?;
    let [kind, _reserved, low, high] = words(header);
    let sector = u64::from(high) << 32 | u64::from(low);
    match kind {
        TYPE_IN => {
            let len = data_room(chain);
            let offset = sectors_at(sector, len, disk)?;
            Ok(Request::Read { offset, len })
        }
        TYPE_OUT if disk.read_only => Err(Refusal::ReadOnly),
        TYPE_OUT => {
            let len = reader.remaining();
            let offset = sectors_at(sector, len, disk)?;
            Ok(Request::Write { offset, len })
        }
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_GET_ID => Ok(Request::GetId),
        TYPE_DISCARD if !disk.read_only => {
            Ok(Request::Discard(ranges(&mut reader, disk, MAX_RANGES, 0)?))
        }
        TYPE_WRITE_ZEROES if !disk.read_only => Ok(Request::WriteZeroes(ranges(
            &mut reader,
            disk,
            MAX_ZERO_RANGES,
            RANGE_UNMAP,
        )?)),
        _ => Err(Refusal::Type(kind)),
    }
}

/// Does what `chain` asks for, and writes its answer: data if there are any, and the status into the last byte. With
/// `write_through` a write is answered once it is where it survives a loss of power.
pub fn serve(chain: &Chain, disk: &Disk, storage: &dyn Storage, write_through: bool) -> Answer {
    let mut writer = chain.writable();
    if writer.remaining() == 0 {
        return Answer {
            written: 0,
            outcome: Err(RequestError::NoStatus),
        };
    }
    let outcome = parse(chain, disk)
        .map_err(RequestError::from)
        .and_then(|request| execute(request, chain, &mut writer, disk, storage, write_through));
    let status = outcome
        .as_ref()
        .map_or_else(RequestError::status, |()| STATUS_OK);
    Answer {
        written: complete(&mut writer, status),
        outcome,
    }
}

/// Writes the status into the last byte. The length that the used ring is told counts from the chain's start, so a gap
/// before the status ends it.
fn complete(writer: &mut Writer<'_>, status: u8) -> u32 {
    let before = writer.written();
    let gap = writer.remaining().saturating_sub(1);
    // Both fit: what is left is the gap and one byte.
    let _ = writer.skip(gap);
    let _ = writer.write_obj(&status);
    match gap {
        0 => writer.written(),
        _ => before,
    }
}

fn execute(
    request: Request,
    chain: &Chain,
    writer: &mut Writer<'_>,
    disk: &Disk,
    storage: &dyn Storage,
    write_through: bool,
) -> Result<(), RequestError> {
    match request {
        Request::Read { offset, len } => storage
            .read(writer, offset, len)
            .map_err(failed_to("be read")),
        Request::Write { offset, len } => {
            let mut reader = chain.readable();
            reader.skip(HEADER_LEN).map_err(Refusal::Header)?;
            storage
                .write(&mut reader, offset, len)
                .map_err(failed_to("be written"))?;
            stabilise(storage, write_through)
        }
        Request::Flush => storage.flush().map_err(failed_to("be flushed")),
        Request::GetId => {
            let room = disk.id.len().min(data_room(chain));
            writer.write(&disk.id[..room]);
            Ok(())
        }
        Request::Discard(ranges) => ranges.as_slice().iter().try_for_each(|range| {
            storage
                .discard(range.offset, range.len)
                .map_err(failed_to("discard"))
        }),
        Request::WriteZeroes(ranges) => {
            ranges.as_slice().iter().try_for_each(|range| {
                storage
                    .write_zeroes(range.offset, range.len, range.unmap)
                    .map_err(failed_to("be zeroed"))
            })?;
            stabilise(storage, write_through)
        }
    }
}

fn stabilise(storage: &dyn Storage, write_through: bool) -> Result<(), RequestError> {
    if write_through {
        storage.flush().map_err(failed_to("be flushed"))?;
    }
    Ok(())
}

fn failed_to(action: &'static str) -> impl FnOnce(io::Error) -> RequestError {
    move |source| RequestError::Storage { action, source }
}

/// The writable part without the status.
fn data_room(chain: &Chain) -> usize {
    (chain.writable_len() as usize).saturating_sub(1)
}

/// Where whole sectors of data start on the disk, in bytes.
fn sectors_at(sector: u64, len: usize, disk: &Disk) -> Result<u64, Refusal> {
    let bytes = len as u64;
    if !bytes.is_multiple_of(SECTOR) {
        return Err(Refusal::PartOfSector(len));
    }
    if bytes > MAX_DATA.into() {
        return Err(Refusal::TooLong(len));
    }
    inside(sector, bytes, disk)
}

/// The first byte of a part of the disk, which all of it has to be.
fn inside(sector: u64, len: u64, disk: &Disk) -> Result<u64, Refusal> {
    let start = sector.checked_mul(SECTOR);
    let end = start.and_then(|start| start.checked_add(len));
    match (start, end) {
        (Some(start), Some(end)) if end <= disk.size => Ok(start),
        _ => Err(Refusal::OutOfRange { sector, len }),
    }
}

fn ranges(
    reader: &mut Reader<'_>,
    disk: &Disk,
    most: usize,
    flags_allowed: u32,
) -> Result<Ranges, Refusal> {
    let len = reader.remaining();
    let count = len / RANGE_LEN;
    if !len.is_multiple_of(RANGE_LEN) || count == 0 || count > most.min(MAX_RANGES) {
        return Err(Refusal::Ranges(len));
    }
    let mut ranges = Ranges::default();
    for range in &mut ranges.list[..count] {
        let bytes: [u8; RANGE_LEN] = reader.read_obj().map_err(Refusal::Header)?;
        let [low, high, sectors, flags] = words(bytes);
        if flags & !flags_allowed != 0 {
            return Err(Refusal::Flags(flags));
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Refusal::LongRange(sectors));
        }
        let sector = u64::from(high) << 32 | u64::from(low);
        let len = u64::from(sectors) * SECTOR;
        *range = Range {
            offset: inside(sector, len, disk)?,
            len,
            unmap: flags & RANGE_UNMAP != 0,
        };
    }
    ranges.count = count;
    Ok(ranges)
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests;
