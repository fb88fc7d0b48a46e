// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle dump`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

use super::reach::{ask_with, containers};
use crate::cli::{Directories, DumpArguments};
use crate::control::Request;

/// Writes the memory and registers of a container's guest to a file.
pub fn dump(directories: &Directories, arguments: &DumpArguments) -> Result<u8> {
    let found = containers(directories).find(&arguments.container)?;
    // It holds whatever secrets the guest does.
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&arguments.file)
        .with_context(|| format!("cannot make {}", arguments.file.display()))?;
    let dumped = ask_with(&found, &Request::Dump, &[file.as_fd()]);
    if dumped.is_err() {
        // Half a dump is of no use.
        let _ = fs::remove_file(&arguments.file);
    }
    dumped.map(|_| 0)
}
