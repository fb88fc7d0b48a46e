// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file on its way into guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use coracle_memory::GuestSlice;
use thiserror::Error;

/// Why a file cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The descriptor cannot be examined.
    #[error("its size cannot be read")]
    Size(#[source] io::Error),
    /// A directory, pipe or device, whose size says nothing.
    #[error("it is not a regular file")]
    NotRegular,
    /// The file cannot be read, or has become shorter.
    #[error("{length} bytes at offset {offset:#x} cannot be read")]
    Read {
        /// Where in the file.
        offset: u64,
        /// How much.
        length: usize,
        /// The reason.
        source: io::Error,
    },
}

/// A regular file and the size that it had when it was opened, or what was unpacked from one.
pub(crate) struct Image<'f> {
    content: Content<'f>,
    len: u64,
}

enum Content<'f> {
    File(&'f File),
    #[cfg(feature = "compressed")]
    Unpacked(Vec<u8>),
}

impl<'f> Image<'f> {
    pub(crate) fn new(file: &'f File) -> Result<Self, ReadError> {
        let metadata = file.metadata().map_err(ReadError::Size)?;
        if !metadata.is_file() {
            return Err(ReadError::NotRegular);
        }
        Ok(Self {
            content: Content::File(file),
            len: metadata.len(),
        })
    }

    /// An image of these bytes.
    #[cfg(feature = "compressed")]
    pub(crate) fn unpacked(bytes: Vec<u8>) -> Self {
        Self {
            len: bytes.len() as u64,
            content: Content::Unpacked(bytes),
        }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let length = buffer.len();
        match &self.content {
            Content::File(file) => file.read_exact_at(buffer, offset),
            #[cfg(feature = "compressed")]
            Content::Unpacked(bytes) => {
                part(bytes, offset, length).map(|bytes| buffer.copy_from_slice(bytes))
            }
        }
        .map_err(|source| ReadError::Read {
            offset,
            length,
            source,
        })
    }

    /// Fills `slice` from `offset` on, without a copy in between.
    pub(crate) fn read_to_guest(
        &self,
        offset: u64,
        slice: GuestSlice<'_>,
    ) -> Result<(), ReadError> {
        let length = slice.len();
        match &self.content {
            Content::File(file) => read_file_to_guest(file, offset, slice),
            #[cfg(feature = "compressed")]
            Content::Unpacked(bytes) => {
                // As long as the slice, which takes all of it.
                part(bytes, offset, length).map(|bytes| _ = slice.copy_from(bytes))
            }
        }
        .map_err(|source| ReadError::Read {
            offset,
            length,
            source,
        })
    }
}

/// `length` of the `bytes` from `offset` on.
#[cfg(feature = "compressed")]
fn part(bytes: &[u8], offset: u64, length: usize) -> io::Result<&[u8]> {
    usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(length)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn read_file_to_guest(file: &File, offset: u64, slice: GuestSlice<'_>) -> io::Result<()> {
    let length = slice.len();
    let mut done = 0;
    while done < length {
        let position = offset
            .checked_add(done as u64)
            .and_then(|position| libc::off_t::try_from(position).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the slice covers `length` bytes of mapped guest memory, of which those from `done` on are
        // written. No Rust reference to guest memory exists that the write could invalidate.
        let read = unsafe {
            libc::pread(
                file.as_raw_fd(),
                slice.as_ptr().add(done).cast(),
                length - done,
                position,
            )
        };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use coracle_memory::{GuestAddress, GuestMemory};
    use rstest::rstest;

    use super::*;
    use crate::testing::file;

    #[rstest]
    #[case::directory("/")]
    #[case::character_device("/dev/zero")]
    fn file_whose_size_says_nothing_is_refused(#[case] path: &str) {
        let file = File::open(path).unwrap();

        let error = Image::new(&file).err();

        assert!(matches!(error, Some(ReadError::NotRegular)));
    }

    #[test]
    fn fifo_is_refused_without_a_wait_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let fifo = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();

        let error = Image::new(&fifo).err();

        assert!(matches!(error, Some(ReadError::NotRegular)));
    }

    #[test]
    fn file_that_was_cut_meanwhile_is_named_with_what_is_missing() {
        let memory = GuestMemory::anonymous(&coracle_memory::layout(1 << 20)).unwrap();
        let slice = memory.slice(GuestAddress(0), 8).unwrap();
        let file = file(&[1; 8]);
        let image = Image::new(&file).unwrap();
        file.set_len(4).unwrap();

        let error = image.read_to_guest(0, slice).unwrap_err();

        assert_eq!(error.to_string(), "8 bytes at offset 0x0 cannot be read");
        assert!(matches!(
            error,
            ReadError::Read { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof
        ));
    }

    #[test]
    fn file_that_is_not_open_for_reading_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("kernel")).unwrap();
        file.set_len(8).unwrap();

        let error = Image::new(&file).unwrap().read(0, &mut [0; 8]).unwrap_err();

        assert!(
            matches!(error, ReadError::Read { source, .. } if source.raw_os_error() == Some(libc::EBADF))
        );
    }
}
