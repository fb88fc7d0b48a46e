// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What comes into the lab (the payload disk) and what goes out of it (the results), both as tar.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use coracle_lab::protocol::RESULTS_DIRECTORY;

/// The disk with the payload: a tar archive from its first byte.
const PAYLOAD_DISK: &str = "/dev/vdb";

/// The unit of direct reads, and of what is sent at once.
const BLOCK: usize = 4096;
const BUFFER: usize = 256 * BLOCK;

/// Unpacks the payload disk's archive of `length` bytes onto the root file system.
pub fn unpack_payload(length: u64) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let disk = Direct::open(Path::new(PAYLOAD_DISK))
        .with_context(|| format!("cannot open {PAYLOAD_DISK}"))?;
    let mut archive = tar::Archive::new(disk.take(length));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    archive.unpack("/").context("cannot unpack the payload")
}

/// Sends the results as a tar archive, piece by piece.
pub fn send(sink: impl FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
    let pieces = Pieces {
        sink,
        buffer: Vec::new(),
    };
    let mut builder = tar::Builder::new(pieces);
    builder.follow_symlinks(false);
    builder
        .append_dir_all(".", RESULTS_DIRECTORY)
        .with_context(|| format!("cannot pack {RESULTS_DIRECTORY}"))?;
    builder
        .into_inner()?
        .flush()
        .context("cannot send the results")
}

/// Reads a disk past the page cache. The cache may hold what was on the disk when the snapshot was
/// taken (the kernel looks for partitions), and a second copy of the payload would waste memory.
struct Direct {
    disk: File,
    buffer: Vec<u8>,
    /// The aligned part of the buffer begins here.
    start: usize,
    position: usize,
    filled: usize,
}

impl Direct {
    fn open(path: &Path) -> std::io::Result<Self> {
        let disk = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let buffer = vec![0; BUFFER + BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        Ok(Self {
            disk,
            buffer,
            start,
            position: 0,
            filled: 0,
        })
    }
}

impl Read for Direct {
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if self.position == self.filled {
            let aligned = &mut self.buffer[self.start..][..BUFFER];
            self.filled = self.disk.read(aligned)?;
            self.position = 0;
        }
        let ready = &self.buffer[self.start..][self.position..self.filled];
        let count = ready.len().min(target.len());
        target[..count].copy_from_slice(&ready[..count]);
        self.position += count;
        Ok(count)
    }
}

/// Collects small writes into messages.
struct Pieces<S> {
    sink: S,
    buffer: Vec<u8>,
}

impl<S: FnMut(Vec<u8>) -> Result<()>> Write for Pieces<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (8 * BLOCK).saturating_sub(self.buffer.len());
        let count = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() >= 8 * BLOCK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        (self.sink)(std::mem::take(&mut self.buffer)).map_err(std::io::Error::other)
    }
}
