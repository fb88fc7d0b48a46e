// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle dump`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;

use super::reach::{ask_with, containers};
use crate::cli::{Directories, DumpArguments};
use crate::control::Request;

/// Writes the memory and registers of a container's guest to a file.
pub fn dump(directories: &Directories, arguments: &DumpArguments) -> Result<u8> {
    // It is written to here and there, as no stream can be.
    ensure!(
        arguments.file != Path::new("-"),
        "a dump goes to a file, not to standard output (./- is a file of that name)"
    );
    let found = containers(directories).find(&arguments.container)?;
    let cannot_make = || format!("cannot make {}", arguments.file.display());
    let core = NewFile::make(&arguments.file).with_context(cannot_make)?;
    ask_with(&found, &Request::Dump, &[core.file.as_fd()])?;
    core.keep().with_context(cannot_make)?;
    Ok(0)
}

/// Whether a path could be that of a file: not one of a directory, as `core/` and `core/.` are.
fn ends_with_a_name(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.file_name()
        .is_some_and(|name| bytes.ends_with(name.as_encoded_bytes()))
}

/// A file that has its name only once it is whole, where the file system has files without names: then nothing of it is
/// left, however this process ends. For this user alone, since it holds whatever secrets a guest does.
struct NewFile<'a> {
    file: File,
    path: &'a Path,
    is_named: bool,
}

impl<'a> NewFile<'a> {
    /// A file to be, if none has that name.
    fn make(path: &'a Path) -> io::Result<Self> {
        // What is no name for a file is refused now, and not when all is written.
        match path.symlink_metadata() {
            Ok(_) => return Err(Errno::EXIST.into()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) if !ends_with_a_name(path) => return Err(Errno::ISDIR.into()),
            Err(_) => {}
        }
        let mut options = File::options();
        options.write(true).mode(0o600);
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let nameless = options
            .clone()
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(directory);
        let (file, is_named) = match nameless {
            Ok(file) => (file, false),
            Err(_) => (options.create_new(true).open(path)?, true),
        };
        Ok(Self {
            file,
            path,
            is_named,
        })
    }

    /// Gives it its name, unless that was taken meanwhile.
    fn keep(mut self) -> io::Result<()> {
        if !self.is_named {
            let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, &*open, CWD, self.path, AtFlags::SYMLINK_FOLLOW)?;
        }
        self.is_named = false;
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if self.is_named {
            // Half a dump is of no use.
            let _ = fs::remove_file(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn file_appears_whole_and_for_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        let mut core = NewFile::make(&path).unwrap();
        core.file.write_all(b"memory").unwrap();
        assert!(!path.exists());

        core.keep().unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"memory");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn name_that_no_file_can_have_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();

        for name in ["core/", "core/.", "nothing/core", &"x".repeat(256), ""] {
            let path = format!("{}/{name}", directory.path().display());
            assert!(NewFile::make(Path::new(&path)).is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_is_left_of_what_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");

        drop(NewFile::make(&path).unwrap());

        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn file_that_is_there_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        let late = NewFile::make(&path).unwrap();
        fs::write(&path, "another's").unwrap();

        let refused = late.keep().unwrap_err();
        let again = NewFile::make(&path).err().unwrap();

        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }
}
