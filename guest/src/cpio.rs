// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes `newc` cpio archives, the only format that every kernel unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).
//!
//! An archive depends on nothing but what is put into it: times are 0, the owner is root and inode numbers count up,
//! so that equal inputs give equal bytes and a cache may be keyed by them. It is not compressed: the guest would pay for
//! unpacking at each start, the host for the file's pages only once.

use std::io::{self, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A cpio archive on its way into `W`.
///
/// Paths are relative to the archive's root, without a leading slash; a directory comes before what is in it.
#[derive(Debug)]
pub struct Archive<W> {
    output: W,
    entries: u32,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    device: (u32, u32),
    contents: &'a [u8],
}

impl<W: Write> Archive<W> {
    /// Starts an archive that is written to `output`.
    pub fn new(output: W) -> Self {
        Self { output, entries: 0 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    ///
    /// Those of the output, here as in the methods that follow.
    pub fn directory(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.entry(&Entry {
            path,
            mode: DIRECTORY | permissions,
            device: (0, 0),
            contents: &[],
        })
    }

    /// Adds a regular file.
    ///
    /// # Errors
    ///
    /// As well as those of the output: `contents` has 4 GiB or more, which the format cannot hold.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(&Entry {
            path,
            mode: REGULAR | permissions,
            device: (0, 0),
            contents,
        })
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(&Entry {
            path,
            mode: SYMLINK | 0o777,
            device: (0, 0),
            contents: target.as_bytes(),
        })
    }

    /// Adds a character device of the given major and minor number.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn character_device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(&Entry {
            path,
            mode: CHARACTER_DEVICE | permissions,
            device: (major, minor),
            contents: &[],
        })
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.entries = 0;
        self.entry(&Entry {
            path: TRAILER,
            mode: 0,
            device: (0, 0),
            contents: &[],
        })?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let links = if entry.mode & DIRECTORY == DIRECTORY {
            2
        } else {
            1
        };
        let size = u32::try_from(entry.contents.len()).map_err(|_| {
            invalid(format!(
                "{} has {} bytes, and cpio holds less than 4 GiB",
                entry.path,
                entry.contents.len()
            ))
        })?;
        // Counts the terminating NUL.
        let name_size = u32::try_from(entry.path.len())
            .ok()
            .and_then(|length| length.checked_add(1))
            .ok_or_else(|| invalid(format!("name of {} bytes", entry.path.len())))?;
        let fields = [
            self.entries,
            entry.mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // major and minor of the device that the file lies on
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0, // check sum, unused in this format
        ];
        self.entries = self.entries.wrapping_add(1);

        let mut header = String::with_capacity(MAGIC.len() + 8 * fields.len());
        header.push_str(MAGIC);
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(entry.path.as_bytes())?;
        self.output.write_all(&[0])?;
        self.pad(header.len() + entry.path.len() + 1)?;
        self.output.write_all(entry.contents)?;
        self.pad(entry.contents.len())
    }

    /// Fills up to the next multiple of four after `length` bytes.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        let missing = length.next_multiple_of(4) - length;
        self.output.write_all(&[0; 3][..missing])
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_laid_out_as_the_kernel_documents() {
        let mut archive = Archive::new(Vec::new());

        archive.directory("dev", 0o755).unwrap();
        archive
            .character_device("dev/console", 0o600, 5, 1)
            .unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();

        let expected = concat!(
            "070701",
            "00000000000041ed0000000000000000000000020000000000000000",
            "00000000000000000000000000000000",
            "00000004",
            "00000000",
            "dev\0",
            "\0\0",
            "070701",
            "00000001000021800000000000000000000000010000000000000000",
            "00000000000000000000000500000001",
            "0000000c",
            "00000000",
            "dev/console\0",
            "\0\0",
            "070701",
            "00000002000081ed0000000000000000000000010000000000000005",
            "00000000000000000000000000000000",
            "00000005",
            "00000000",
            "init\0",
            "\0",
            "hello",
            "\0\0\0",
            "070701",
            "00000000000000000000000000000000000000010000000000000000",
            "00000000000000000000000000000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn symlink_holds_its_target() {
        let mut archive = Archive::new(Vec::new());

        archive.symlink("bin", "usr/bin").unwrap();

        let bytes = archive.finish().unwrap();
        assert!(bytes.starts_with(b"070701000000000000a1ff"));
        assert_eq!(&bytes[116..123], b"usr/bin");
    }

    #[test]
    fn failing_output_is_reported() {
        let mut room = [0_u8; 50];
        let mut archive = Archive::new(room.as_mut_slice());

        let error = archive.directory("dev", 0o755).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
