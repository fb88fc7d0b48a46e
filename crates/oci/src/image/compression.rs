// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compressed formats, told by how their content starts.

use std::io::Read;

use super::member::Member;

/// A compressed format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Format {
    /// The format of `content`, if it is compressed.
    pub(super) fn of(content: &Member) -> Option<Self> {
        let mut magic = Vec::new();
        content.clone().take(6).read_to_end(&mut magic).ok()?;
        match magic.as_slice() {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Self::Xz),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            _ => None,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}
