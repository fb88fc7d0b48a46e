// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle stop` and `coracle kill`.

use std::time::Duration;

use anyhow::{Result, bail};

use super::reach::{ask, for_each, wait_until_dead};
use crate::cli::{Directories, KillArguments, StopArguments};
use crate::container::Found;
use crate::control::Request;

/// How long a container may take to be gone once its machine is.
pub const CLEARING_UP: Duration = Duration::from_secs(30);
/// How long a killed container may take to end before its machine's power is cut.
const DYING: Duration = Duration::from_secs(5);

/// Asks containers to end, and makes them if they do not.
pub fn stop(directories: &Directories, arguments: &StopArguments) -> Result<u8> {
    for_each(directories, &arguments.containers, |mut found| {
        if !found.is_held {
            return Ok(());
        }
        let signal = found.record.stop_signal;
        // A guest that cannot be asked is ended all the same; one that has ended holds ports and names for a while.
        let is_ending = !found.state.is_alive() || ask(&found, &Request::Signal { signal }).is_ok();
        if is_ending && wait_until_dead(&mut found, arguments.time) {
            return Ok(());
        }
        put_to_death(&mut found)
    })
}

/// Sends a signal to containers.
pub fn kill(directories: &Directories, arguments: &KillArguments) -> Result<u8> {
    let signal = arguments.signal;
    for_each(directories, &arguments.containers, |mut found| {
        if signal == libc::SIGKILL && found.is_held {
            return put_to_death(&mut found);
        }
        ask(&found, &Request::Signal { signal }).map(drop)
    })
}

/// Kills the container's processes; if that does not end it, its machine. Comes back once nothing of it runs.
pub fn put_to_death(found: &mut Found) -> Result<()> {
    let signal = libc::SIGKILL;
    let asked = ask(found, &Request::Signal { signal });
    if asked.is_ok() && wait_until_dead(found, DYING) {
        return Ok(());
    }
    let cut_off = ask(found, &Request::End);
    if wait_until_dead(found, CLEARING_UP) {
        return Ok(());
    }
    match cut_off {
        Ok(_) => bail!(
            "container {} has not ended within {} s",
            found.record.name,
            CLEARING_UP.as_secs()
        ),
        Err(error) => Err(error),
    }
}
