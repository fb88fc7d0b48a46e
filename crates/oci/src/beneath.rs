// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening files below a directory that is not trusted.
//!
//! Paths are resolved by the kernel (`openat2`), so that no symlink, `..` or magic link leads out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::path::Arg;

/// Where symlinks on the way lead.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symlinks {
    /// Relative ones are followed as long as they stay below the root; others are errors.
    Below,
    /// All are followed as a process would that has the root as its `/`.
    InRoot,
}

/// How often a resolution is tried again when a rename elsewhere disturbs it.
const ATTEMPTS: usize = 8;

/// Opens the regular file `path` for reading.
///
/// Anything else is refused before it is opened: opening a FIFO waits for ever, opening a device
/// can have effects of its own.
pub(crate) fn open_regular(root: impl AsFd, path: &str, symlinks: Symlinks) -> io::Result<File> {
    let resolve = match symlinks {
        Symlinks::Below => ResolveFlags::BENEATH,
        Symlinks::InRoot => ResolveFlags::IN_ROOT,
    } | ResolveFlags::NO_MAGICLINKS;
    let seen = open(&root, path, OFlags::PATH, resolve)?;
    require_regular(&seen)?;
    let file = open(
        &root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        resolve,
    )?;
    require_regular(&file)?;
    Ok(File::from(file))
}

/// Calls `openat2`, again where the kernel asks for it.
pub(crate) fn open(
    root: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let mut attempt = 1;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if attempt < ATTEMPTS => {
                attempt += 1
            }
            outcome => return Ok(outcome?),
        }
    }
}

fn require_regular(file: &OwnedFd) -> io::Result<()> {
    let kind = FileType::from_raw_mode(fstat(file)?.st_mode);
    if kind == FileType::RegularFile {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}
