// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file of a layout: a whole file, or the part of an archive that holds it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A range of a file, read from its start. Clones share the file, not the position.
#[derive(Clone, Debug)]
pub struct Member {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Member {
    /// The `size` bytes of `file` from `offset` on.
    pub(crate) fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            file,
            position: offset,
            end: offset.saturating_add(size),
        }
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position)
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
        let count = self.file.read_at(&mut buffer[..limit], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
