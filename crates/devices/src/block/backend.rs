// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file or a block device of the host as a disk.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use coracle_virtio::{Reader, Writer};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::queue::{Properties, SECTOR, Storage};

/// Written over and over where the host has no better way to zero.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A file that cannot be a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The host does not tell what it is.
    #[error("the disk's file cannot be examined")]
    Examine(#[source] io::Error),
    /// Neither a regular file nor a block device.
    #[error("{0} cannot be a disk: it has to be a regular file or a block device")]
    Kind(&'static str),
    /// Not in sectors.
    #[error(
        "a disk of {0} bytes is not possible: it has to be one or more sectors of {SECTOR} bytes"
    )]
    Size(u64),
    /// Opened for something else.
    #[error("the disk's file is opened {found}, and has to be opened for {needed}")]
    Opened {
        /// What it is open for.
        found: &'static str,
        /// What a disk needs.
        needed: &'static str,
    },
    /// Somebody else uses it, and one of both writes.
    #[error(
        "the disk is in use: another process holds a lock on its file, so it cannot be {wanted}"
    )]
    InUse {
        /// What was wanted.
        wanted: &'static str,
    },
    /// Locks do not work there.
    #[error("the disk's file cannot be locked")]
    Lock(#[source] io::Error),
}

/// A disk that is a regular file or a block device of the host, byte for byte.
///
/// It is locked for as long as it is open, so that no two machines write it, or one writes what another reads. The lock
/// is one of the open file description (`F_OFD_SETLK`) over the whole file: other programs see it only if they lock as
/// well, as QEMU does.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    is_device: bool,
    properties: Properties,
}

impl DiskFile {
    /// The disk that is in `file`, which has to be opened for reading, and for writing unless the disk is `read_only`.
    ///
    /// # Errors
    ///
    /// [`DiskError`] if `file` is no disk, is not opened as needed, or is used by others.
    pub fn new(file: File, read_only: bool) -> Result<Self, DiskError> {
        let metadata = file.metadata().map_err(DiskError::Examine)?;
        let is_device = is_block_device(&metadata)?;
        check_opening(&file, read_only)?;
        let size = match is_device {
            true => rustix::fs::seek(&file, SeekFrom::End(0)).map_err(examine)?,
            false => metadata.len(),
        };
        if size < SECTOR || !size.is_multiple_of(SECTOR) {
            return Err(DiskError::Size(size));
        }
        let (block_size, physical_block_size) = match is_device {
            true => (
                rustix::fs::ioctl_blksszget(&file).map_err(examine)?,
                rustix::fs::ioctl_blkpbszget(&file).map_err(examine)?,
            ),
            // A file takes any write; it is the unit of its file system that costs no reading first.
            false => (SECTOR as u32, unit(metadata.blksize())),
        };
        lock(&file, read_only)?;
        Ok(Self {
            file,
            is_device,
            properties: Properties {
                size,
                read_only,
                block_size,
                physical_block_size,
            },
        })
    }

    fn zero_one_by_one(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            // At most the length of the block.
            let count = (len - done).min(ZEROES.len() as u64) as usize;
            self.file.write_all_at(&ZEROES[..count], offset + done)?;
            done += count as u64;
        }
        Ok(())
    }
}

impl Storage for DiskFile {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn read(&self, buffers: &mut Writer<'_>, offset: u64, len: usize) -> io::Result<()> {
        // The file is shorter than it was.
        let at_the_end = io::ErrorKind::UnexpectedEof;
        all(len, at_the_end, |done, left| {
            buffers.read_from_at(&self.file, offset + done, left)
        })
    }

    fn write(&self, buffers: &mut Reader<'_>, offset: u64, len: usize) -> io::Result<()> {
        all(len, io::ErrorKind::WriteZero, |done, left| {
            buffers.write_to_at(&self.file, offset + done, left)
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.file))?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let discarded = match self.is_device {
            true => discard_on_device(&self.file, offset, len),
            false => punch_hole(&self.file, offset, len),
        };
        Ok(discarded?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let zero_range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let mut zeroed = Err(Errno::OPNOTSUPP);
        if unmap {
            zeroed = punch_hole(&self.file, offset, len);
        }
        if zeroed == Err(Errno::OPNOTSUPP) {
            zeroed = allocate(&self.file, zero_range, offset, len);
        }
        match zeroed {
            Err(Errno::OPNOTSUPP) => self.zero_one_by_one(offset, len),
            zeroed => Ok(zeroed?),
        }
    }
}

/// The unit that a disk in a file is organised in. Some file systems say what is best for long transfers instead, up to
/// MiBs: guests would discard nothing that is smaller.
fn unit(preferred: u64) -> u32 {
    const PAGE: u32 = 4096;
    u32::try_from(preferred).map_or(PAGE, |preferred| preferred.min(PAGE))
}

/// Calls `step` with how much is done and how much is left until nothing is: system calls may do less than they are
/// asked for, and may be interrupted. `nothing` is the error for a step that does nothing.
fn all(
    len: usize,
    nothing: io::ErrorKind,
    mut step: impl FnMut(u64, usize) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match step(done as u64, len - done) {
            Ok(0) => return Err(nothing.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes a hole of zeroes; on a block device as well.
fn punch_hole(file: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(file, flags, offset, len)
}

fn allocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    // Which the system call refuses.
    if len == 0 {
        return Ok(());
    }
    retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, len))
}

/// A hole would have the device write zeroes where it cannot unmap; this only tells it what is not needed any more.
fn discard_on_device(file: &File, offset: u64, len: u64) -> Result<(), Errno> {
    if len == 0 {
        return Ok(());
    }
    let range = [offset, len];
    retry_on_intr(|| {
        // SAFETY: BLKDISCARD reads two 64-bit numbers from the pointer.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        match done {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    })
}

/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

fn is_block_device(metadata: &Metadata) -> Result<bool, DiskError> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "a file of this kind",
    };
    Err(DiskError::Kind(found))
}

fn check_opening(file: &File, read_only: bool) -> Result<(), DiskError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(examine)?;
    let needed = match read_only {
        true => "reading",
        false => "reading and writing",
    };
    let found = match flags & OFlags::RWMODE {
        _ if flags.contains(OFlags::PATH) => "by its path only",
        OFlags::WRONLY => "for writing only",
        OFlags::RDONLY if !read_only => "for reading only",
        // Each write would go to the end, wherever the guest wants it.
        _ if flags.contains(OFlags::APPEND) && !read_only => "for appending",
        _ => return Ok(()),
    };
    Err(DiskError::Opened { found, needed })
}

/// Locks all of the file, for writing or against it.
fn lock(file: &File, read_only: bool) -> Result<(), DiskError> {
    let (kind, wanted) = match read_only {
        true => (libc::F_RDLCK, "read while it is written"),
        false => (libc::F_WRLCK, "written"),
    };
    // SAFETY: a structure of integers, for which zeroes are values; length 0 is up to the end.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the call reads a `flock`.
    let locked =
        unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if locked == 0 {
        return Ok(());
    }
    match last_error() {
        Errno::AGAIN | Errno::ACCESS => Err(DiskError::InUse { wanted }),
        errno => Err(DiskError::Lock(errno.into())),
    }
}

fn examine(errno: Errno) -> DiskError {
    DiskError::Examine(errno.into())
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
