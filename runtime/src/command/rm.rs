// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle rm`.

use anyhow::{Context, Result, bail};

use super::ending::{CLEARING_UP, put_to_death};
use super::reach::{containers, for_each_name, wait_until_dead};
use crate::cli::{Directories, RmArguments};
use crate::config::Config;
use crate::container::{Found, Places};

/// Removes containers that have ended.
pub fn rm(directories: &Directories, config: &Config, arguments: &RmArguments) -> Result<u8> {
    let places = directories.places().with_networks(config);
    let containers = containers(directories);
    for_each_name(&arguments.containers, |name| {
        let mut found = match containers.find(name) {
            // Of one that is gone there may be a network that nothing could remove.
            Err(_) if places.give_up_network(name)? => return Ok(()),
            found => found?,
        };
        let name = found.record.name.clone();
        if found.state.is_alive() && !arguments.force {
            bail!(
                "container {name} is {} (stop it first, or use --force)",
                found.state.word()
            );
        }
        // One that has ended may wait for whoever reads what is left of its output.
        if found.is_held && arguments.force {
            put_to_death(&mut found)?;
        }
        remove(&mut found, &places).with_context(|| format!("cannot remove container {name}"))
    })
}

/// Removes what there is of a container that nobody runs.
fn remove(found: &mut Found, places: &Places) -> Result<()> {
    // Whoever ran it may still be clearing up.
    if !wait_until_dead(found, CLEARING_UP) {
        bail!(
            "what ran it has not cleared up within {} s",
            CLEARING_UP.as_secs()
        );
    }
    places.remove(&found.record.id)
}
