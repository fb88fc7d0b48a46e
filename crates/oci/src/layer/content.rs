// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What files hold. Holes of sparse files stay holes, and long runs of zeros become some: most builders write sparse
//! files, such as logs of logins, in full.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use super::apply::EntryFault;
use super::tree::Fault;
use crate::tarball::{Entries, Entry};

/// Shortest run of zeros that becomes a hole: a block of most file systems.
const HOLE: usize = 4096;

/// Writes the content of `entry` to an empty file.
pub(super) fn write(
    content: &mut Entries<impl Read>,
    entry: &Entry,
    file: OwnedFd,
    buffer: &mut [u8],
) -> Result<OwnedFd, EntryFault> {
    let file = File::from(file);
    let failed = |error| Fault::Io("write", error);
    let (size, end) = match &entry.sparse {
        None => (entry.size, segment(content, &file, 0, entry.size, buffer)?),
        Some(sparse) => {
            let mut end = 0;
            for (start, length) in &sparse.segments {
                end = segment(content, &file, *start, *length, buffer)?.max(end);
            }
            (sparse.size, end)
        }
    };
    // Nothing was written where the file ends.
    if end < size {
        file.set_len(size).map_err(failed)?;
    }
    Ok(file.into())
}

/// Writes the next `length` bytes at `start`; says where the last one was written.
fn segment(
    content: &mut Entries<impl Read>,
    file: &File,
    start: u64,
    length: u64,
    buffer: &mut [u8],
) -> Result<u64, EntryFault> {
    let mut end = 0;
    let mut done = 0;
    while done < length {
        let limit =
            usize::try_from(length - done).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = content.read_content(&mut buffer[..limit])?;
        if count == 0 {
            // The map fits the content, so this cannot be; a file cut short would be worse than the check.
            return Err(Fault::Io("read", std::io::ErrorKind::UnexpectedEof.into()).into());
        }
        let bytes = &buffer[..count];
        let position = start.saturating_add(done);
        done += count as u64;
        if count < HOLE || !is_zero(bytes) {
            file.write_all_at(bytes, position)
                .map_err(|error| Fault::Io("write", error))?;
            end = start.saturating_add(done);
        }
    }
    Ok(end)
}

fn is_zero(bytes: &[u8]) -> bool {
    // By blocks, so that the test is quick both to give up and to go on.
    bytes
        .chunks(HOLE)
        .all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0)
}
