// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file of a layout: a whole file, the part of an archive that holds it, or a document made up for an archive that
//! lacks it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A range of a file, or some bytes, read from the start. Clones share the content, not the position.
#[derive(Clone, Debug)]
pub struct Member {
    content: Content,
    position: u64,
    end: u64,
}

#[derive(Clone, Debug)]
enum Content {
    File(Arc<File>),
    Memory(Arc<[u8]>),
}

impl Member {
    /// The `size` bytes of `file` from `offset` on.
    pub(crate) fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            content: Content::File(file),
            position: offset,
            end: offset.saturating_add(size),
        }
    }

    /// These bytes.
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self {
            position: 0,
            end: bytes.len() as u64,
            content: Content::Memory(bytes.into()),
        }
    }

    /// The next `size` bytes of it.
    pub(crate) fn cut(mut self, size: u64) -> Self {
        self.end = self.end.min(self.position.saturating_add(size));
        self
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }

    /// Where it starts and ends in its file: what lies in one place of a file is one thing.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.position, self.end)
    }

    /// Passes over `count` bytes without reading them.
    pub(crate) fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.remaining() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count;
        Ok(())
    }
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.remaining())
            .map_or(buffer.len(), |remaining| remaining.min(buffer.len()));
        let count = match &self.content {
            Content::File(file) => file.read_at(&mut buffer[..limit], self.position)?,
            Content::Memory(bytes) => {
                let start = usize::try_from(self.position).unwrap_or(usize::MAX);
                bytes
                    .get(start..)
                    .unwrap_or_default()
                    .read(&mut buffer[..limit])?
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}
