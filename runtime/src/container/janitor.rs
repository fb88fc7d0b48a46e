// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that outlives a killed run, to clear up after it.
//!
//! It is forked before the run has threads, mounts or guests, waits until the run has no more to say to it, and then
//! clears up.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::Result;
use coracle_oci::store::Store;

use super::{Id, Places};
use crate::lifeline::{Lifeline, wait_for_end};

/// What the janitor says when all is cleared up.
const CLEARED: &str = "cleared";

/// The run's handle on its janitor.
pub struct Janitor(Lifeline);

/// What became of the clearing up.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Cleared,
    /// Something is left, for this reason.
    Failed(String),
    /// The janitor is not there any more.
    Killed,
}

impl Janitor {
    /// Forks a janitor for the run of a container, and for what is half done in the image store.
    ///
    /// To be called while the process has one thread.
    pub fn start(id: Id, places: Places) -> Result<Self> {
        Lifeline::fork(&[], |run| clear_after(run, &id, &places)).map(Self)
    }

    /// Has the janitor clear up and waits until it has.
    pub fn dismiss(&self) -> Outcome {
        self.0.hang_up();
        match self.0.listen(None).as_str() {
            CLEARED => Outcome::Cleared,
            "" => Outcome::Killed,
            reason => Outcome::Failed(reason.to_owned()),
        }
    }
}

/// The janitor's life: block until the run hangs up, then clear up, and say how that went.
fn clear_after(mut run: UnixStream, id: &Id, places: &Places) {
    wait_for_end(&run);
    // Whatever cannot be removed is left to the next run's sweep.
    let said = match places.clear(id) {
        Ok(()) => CLEARED.to_owned(),
        Err(error) => format!("{error:#}"),
    };
    // A run that was killed does not hear it.
    let _ = run.write_all(said.as_bytes());
    drop(run);
    // That may wait for all of a disk, and the run for nothing that is not its own.
    Store::sweep(&places.store);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::places::tests::{Host, host_with_plugin, remember_network};
    use super::*;
    use crate::testing::alone;

    const ID: &str = "0123456789ab";

    #[test]
    fn dismissed_janitor_has_cleared_up() {
        alone(dismissed_janitor_has_cleared_up, || {
            let host = Host::new();
            let pair = host.run(ID);
            let janitor = Janitor::start(ID.parse().unwrap(), host.places.clone()).unwrap();

            let outcome = janitor.dismiss();

            assert_eq!(outcome, Outcome::Cleared);
            assert!(!pair.container.exists() && !pair.state.exists());
        });
    }

    #[test]
    fn janitor_says_what_it_could_not_clear_up() {
        alone(janitor_says_what_it_could_not_clear_up, || {
            let host = Host::new();
            host.run(ID);
            fs::write(&host.places.network.state, "no directory").unwrap();
            let janitor = Janitor::start(ID.parse().unwrap(), host.places.clone()).unwrap();

            let outcome = janitor.dismiss();

            let expected = format!("{}/machines", host.places.network.state.display());
            assert!(
                matches!(&outcome, Outcome::Failed(reason) if reason.contains(&expected)),
                "{outcome:?}"
            );
        });
    }

    #[test]
    fn what_a_janitor_starts_is_told_what_to_do() {
        alone(what_a_janitor_starts_is_told_what_to_do, || {
            let (host, told) = host_with_plugin();
            let machine = remember_network(&host, "tell");
            let janitor = Janitor::start(ID.parse().unwrap(), host.places.clone()).unwrap();

            let outcome = janitor.dismiss();

            assert_eq!(outcome, Outcome::Cleared);
            let told = fs::read_to_string(told).unwrap();
            assert!(told.contains("configuration"), "{told}");
            assert!(!machine.exists());
        });
    }
}
