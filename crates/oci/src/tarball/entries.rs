// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entries of a tar stream, one after another.

use std::io::{self, Read};

use super::entry::{Entry, Kind, Time};
use super::error::TarError;
use super::header::{BLOCK, BadField, Header};
use super::pax::{self, BadRecord, Pax, PaxSparse};
use super::sparse::{self, BadMap, NewMap, Segment, Sparse};
use crate::show::quoted;

/// Most bytes of extended headers before one entry: far beyond any path and all extended
/// attributes that a file system keeps, so that a stream cannot fill memory.
pub(super) const EXTENSION_LIMIT: u64 = 1 << 20;

/// Reads a tar stream entry by entry. Whatever of an entry's content was not read is skipped.
pub struct Entries<R> {
    reader: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    offset: u64,
    /// Content of the current entry that was not read.
    content: u64,
    /// Bytes after it, up to the next block.
    padding: u64,
    ended: bool,
}

impl<R: Read> Entries<R> {
    /// Reads `reader`, skipping by reading.
    pub fn new(reader: R) -> Self {
        Self::with_skip(reader, read_past)
    }

    /// Reads `reader`, where `skip` passes over bytes; it must fail where they are not there.
    pub fn with_skip(reader: R, skip: fn(&mut R, u64) -> io::Result<()>) -> Self {
        Self {
            reader,
            skip,
            offset: 0,
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Bytes into the stream; after `next`, where the entry's content starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        loop {
            self.skip_rest()?;
            let start = self.offset;
            let Some(block) = self.header()? else {
                return match extended.used {
                    0 => Ok(None),
                    _ => Err(TarError::Truncated {
                        offset: self.offset,
                    }),
                };
            };
            let header = Header(&block);
            if !header.checksum_matches() {
                return Err(TarError::Checksum { offset: start });
            }
            let bad_field = |BadField(field)| TarError::Field {
                offset: start,
                field,
            };
            let size = header.size().map_err(bad_field)?;
            match header.type_flag() {
                b'x' => extended.pax = Some(self.pax(start, size, &mut extended.used)?),
                b'L' => extended.path = Some(self.long_name(start, size, &mut extended.used)?),
                b'K' => extended.link = Some(self.long_name(start, size, &mut extended.used)?),
                // Global records (comments, in practice) would change entries from afar; image
                // builders ignore them, and so is done here.
                b'g' => self.expect_content(start, size)?,
                _ => return self.entry(start, &header, extended).map(Some),
            }
        }
    }

    /// Reads content of the current entry, at most up to its end. An early end of the stream is
    /// an error.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let limit =
            usize::try_from(self.content).map_or(buffer.len(), |content| content.min(buffer.len()));
        if limit == 0 {
            return Ok(0);
        }
        let offset = self.offset;
        let count = loop {
            match self.reader.read(&mut buffer[..limit]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(|source| TarError::Read { offset, source })?,
            }
        };
        if count == 0 {
            return Err(TarError::Truncated { offset });
        }
        self.offset += count as u64;
        self.content -= count as u64;
        Ok(count)
    }

    fn entry(
        &mut self,
        start: u64,
        header: &Header<'_>,
        extended: Extended,
    ) -> Result<Entry, TarError> {
        let bad_field = |BadField(field)| TarError::Field {
            offset: start,
            field,
        };
        let pax = extended.pax.unwrap_or_default();
        let sparse_name = pax.sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name
            .or(pax.path)
            .or(extended.path)
            .unwrap_or_else(|| header.name());
        let link = pax
            .link_path
            .or(extended.link)
            .unwrap_or_else(|| header.link_name());
        let unsupported = |what| TarError::Unsupported {
            entry: quoted(&path),
            what,
        };
        let kind = match header.type_flag() {
            // Before POSIX, a directory was told by its name.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => header
                .device()
                .map(|(major, minor)| Kind::CharacterDevice(major, minor))
                .map_err(bad_field)?,
            b'4' => header
                .device()
                .map(|(major, minor)| Kind::BlockDevice(major, minor))
                .map_err(bad_field)?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'M' => return Err(unsupported("the continuation of another archive's file")),
            b'V' => return Err(unsupported("a volume label")),
            _ => return Err(unsupported("of an unknown type")),
        };
        let size = match pax.size {
            Some(size) => size,
            None => header.size().map_err(bad_field)?,
        };
        if kind != Kind::File && size > 0 {
            return Err(TarError::Content {
                entry: quoted(&path),
                size,
            });
        }
        let bad_map = |BadMap(reason)| TarError::Sparse {
            entry: quoted(&path),
            reason,
        };
        let (size, sparse) = match (header.type_flag(), pax.sparse) {
            (b'S', _) => {
                let segments = self.old_map(header, &bad_map, extended.used)?;
                self.expect_content(start, size)?;
                let whole = sparse::old_size(header.0).map_err(bad_map)?;
                (
                    size,
                    Some(Sparse::new(whole, segments, size).map_err(bad_map)?),
                )
            }
            (_, Some(map)) if kind == Kind::File => {
                self.expect_content(start, size)?;
                let sparse = self.pax_map(map, &bad_map)?;
                (self.content, Some(sparse))
            }
            _ => {
                self.expect_content(start, size)?;
                (size, None)
            }
        };
        let seconds = Time {
            seconds: header.mtime().map_err(bad_field)?,
            nanoseconds: 0,
        };
        Ok(Entry {
            path,
            kind,
            mode: header.mode().map_err(bad_field)?,
            uid: id(pax.uid.map_or_else(|| header.uid(), Ok), "user id").map_err(bad_field)?,
            gid: id(pax.gid.map_or_else(|| header.gid(), Ok), "group id").map_err(bad_field)?,
            size,
            sparse,
            mtime: pax.mtime.unwrap_or(seconds),
            xattrs: pax.xattrs,
        })
    }

    /// Reads the map of a file of the old format; its content comes after the blocks of the map.
    fn old_map(
        &mut self,
        header: &Header<'_>,
        bad_map: &impl Fn(BadMap) -> TarError,
        mut used: u64,
    ) -> Result<Vec<Segment>, TarError> {
        let mut segments = Vec::new();
        let mut goes_on = sparse::old_map(header.0, true, &mut segments).map_err(bad_map)?;
        while goes_on {
            let offset = self.offset;
            used = used.saturating_add(BLOCK as u64);
            if used > EXTENSION_LIMIT {
                return Err(TarError::ExtensionTooLarge { offset });
            }
            let block = self.block()?.ok_or(TarError::Truncated { offset })?;
            goes_on = sparse::old_map(&block, false, &mut segments).map_err(bad_map)?;
        }
        Ok(segments)
    }

    /// The map that pax records hold, or announce: then it is at the start of the content.
    fn pax_map(
        &mut self,
        records: PaxSparse,
        bad_map: &impl Fn(BadMap) -> TarError,
    ) -> Result<Sparse, TarError> {
        let segments = match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
            (1, 0) if records.map.is_empty() => self.new_map(bad_map)?,
            (0, 0 | 1) if records.map.len().is_multiple_of(2) => sparse::pairs(&records.map),
            (0 | 1, _) => return Err(bad_map(BadMap("it is not one of its version"))),
            _ => return Err(bad_map(BadMap("it is of an unknown version"))),
        };
        let announced = records.count.map(usize::try_from);
        if announced.is_some_and(|count| count != Ok(segments.len())) {
            return Err(bad_map(BadMap(
                "it has another number of parts than it says",
            )));
        }
        let missing = BadMap("the size of the file is not stated");
        let size = records.size.ok_or(missing).map_err(bad_map)?;
        Sparse::new(size, segments, self.content).map_err(bad_map)
    }

    fn new_map(&mut self, bad_map: &impl Fn(BadMap) -> TarError) -> Result<Vec<Segment>, TarError> {
        let mut map = NewMap::default();
        let mut read = 0;
        loop {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_content(&mut block[filled..])? {
                    0 => return Err(bad_map(BadMap("it has no end"))),
                    count => filled += count,
                }
            }
            if let Some(segments) = map.block(&block).map_err(bad_map)? {
                return Ok(segments);
            }
            read += BLOCK as u64;
            if read > EXTENSION_LIMIT {
                return Err(TarError::ExtensionTooLarge {
                    offset: self.offset,
                });
            }
        }
    }

    fn expect_content(&mut self, start: u64, size: u64) -> Result<(), TarError> {
        let block = BLOCK as u64;
        self.padding = (block - size % block) % block;
        self.content = size;
        // Keeps sums of offset, content and padding within 64 bits.
        if size > u64::MAX / 4 {
            return Err(TarError::Field {
                offset: start,
                field: "size",
            });
        }
        Ok(())
    }

    fn pax(&mut self, start: u64, size: u64, used: &mut u64) -> Result<Pax, TarError> {
        let bytes = self.extension(start, size, used)?;
        pax::parse(&bytes).map_err(|BadRecord(reason)| TarError::Pax {
            offset: start,
            reason,
        })
    }

    fn long_name(&mut self, start: u64, size: u64, used: &mut u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.extension(start, size, used)?;
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }

    fn extension(&mut self, start: u64, size: u64, used: &mut u64) -> Result<Vec<u8>, TarError> {
        // One is counted for the header itself, so that empty extensions count too.
        *used = used.saturating_add(size).saturating_add(1);
        if *used > EXTENSION_LIMIT {
            return Err(TarError::ExtensionTooLarge { offset: start });
        }
        self.expect_content(start, size)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read_content(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Passes over what is left of the current entry. A stream that ends in the padding after all
    /// content ends there well: writers exist that leave the rest of the block out.
    fn skip_rest(&mut self) -> Result<(), TarError> {
        let content = std::mem::take(&mut self.content);
        let padding = std::mem::take(&mut self.padding);
        self.skip(content)?;
        match self.skip(padding) {
            Err(TarError::Truncated { .. }) => {
                self.ended = true;
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn skip(&mut self, count: u64) -> Result<(), TarError> {
        if count == 0 {
            return Ok(());
        }
        let offset = self.offset;
        (self.skip)(&mut self.reader, count).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { offset },
            _ => TarError::Read { offset, source },
        })?;
        self.offset = offset.saturating_add(count);
        Ok(())
    }

    /// The next header block; `None` at the end, which two blocks of zeros mark. An end of the
    /// stream between entries is one too: writers exist that leave the mark out.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.offset;
        let first = self.block()?.filter(|block| *block != [0; BLOCK]);
        if first.is_some() {
            return Ok(first);
        }
        self.ended = true;
        match self.block()? {
            Some(second) if second != [0; BLOCK] => Err(TarError::Checksum { offset: start }),
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(TarError::Truncated {
                        offset: self.offset,
                    });
                }
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        Ok(Some(block))
    }
}

/// What extended headers said of the entry to come.
#[derive(Default)]
struct Extended {
    pax: Option<Pax>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    used: u64,
}

/// An id that can be given to a file; the largest means "unchanged" to the kernel.
fn id(value: Result<i64, BadField>, field: &'static str) -> Result<u32, BadField> {
    u32::try_from(value?)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(BadField(field))
}

fn read_past<R: Read>(reader: &mut R, count: u64) -> io::Result<()> {
    let skipped = io::copy(&mut reader.by_ref().take(count), &mut io::sink())?;
    if skipped == count {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
