// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle rm`.

use std::fs::File;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::ending::{CLEARING_UP, put_to_death};
use super::reach::{ask, for_each, wait_until_dead};
use crate::cli::{Directories, RmArguments};
use crate::container::{Found, remove_tree};
use crate::control::Request;

/// Removes containers that have ended.
pub fn rm(directories: &Directories, arguments: &RmArguments) -> Result<u8> {
    for_each(directories, &arguments.containers, |mut found| {
        if found.state.is_alive() && !arguments.force {
            bail!(
                "container {} is {} (stop it first, or use --force)",
                found.record.name,
                found.state.word()
            );
        }
        if found.is_held && arguments.force {
            put_to_death(&mut found)?;
        } else if arguments.force && found.is_held {
            // Whoever reads what is left of its output is not waited for.
            let _ = ask(&found, &Request::End);
        }
        // Whoever ran it may still be clearing up.
        wait_until_dead(&mut found, CLEARING_UP);
        remove(&found)
    })
}

/// Removes what there is of a container that nobody runs.
fn remove(found: &Found) -> Result<()> {
    let directory = &found.directories.container;
    let what = || format!("cannot remove container {}", found.record.name);
    // A container that goes with its end may have gone.
    let lock = match File::open(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        lock => lock.with_context(what)?,
    };
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .context("another process is at it")
        .with_context(what)?;
    // What clears up after a killed runner may be at it.
    let _turn = found.directories.take_turn().with_context(what)?;
    for place in [directory, &found.directories.state] {
        remove_tree(place).with_context(what)?;
    }
    Ok(())
}
