// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! This program, as a container's first process executes it: on a mount of its own that nobody can write to.
//!
//! `/proc/self/exe` leads from a process to the program that it executes, past all namespaces. An image that made it
//! its command, or the interpreter of its command, could otherwise change the program that makes all other containers.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use crate::init::mounts;

const LINK: &str = "/proc/self/exe";

/// This program, opened once for all containers.
///
/// # Errors
///
/// It is no longer where it was started from, or this process may not mount.
pub fn program() -> io::Result<BorrowedFd<'static>> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.as_fd());
    }
    let program = open(&fs::read_link(LINK)?)?;
    Ok(PROGRAM.get_or_init(|| program).as_fd())
}

/// Opens this program at `path`: the mount that `/proc/self/exe` itself leads through may be another namespace's, of which
/// no copy can be made.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?;
    let own = rustix::fs::stat(LINK)?;
    if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) {
        let message = format!("{} is another program by now", path.display());
        return Err(io::Error::other(message));
    }
    let program = mounts::clone(file.as_fd())?;
    let (set, clear) = (MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty());
    mounts::set_attributes(&program, set, clear, false)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_is_not_taken_for_this_one() {
        let error = open(Path::new("/bin/sh")).unwrap_err();

        assert_eq!(error.to_string(), "/bin/sh is another program by now");
    }
}
