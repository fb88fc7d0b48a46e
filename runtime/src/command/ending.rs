// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle stop` and `coracle kill`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::reach::{ask, for_each, wait_until_dead};
use crate::cli::{Directories, KillArguments, StopArguments};
use crate::container::{Found, State};
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
    if give_up_starting(found)? {
        return Ok(());
    }
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

/// Ends a container for as long as it is only starting, by the process that makes it; says whether nothing of it runs
/// any more.
fn give_up_starting(found: &mut Found) -> Result<bool> {
    // Asked, it clears up; killed, its janitor does.
    for (signal, patience) in [(Signal::TERM, DYING), (Signal::KILL, CLEARING_UP)] {
        let State::Starting { runner } = found.state else {
            break;
        };
        let sent = signal_runner(found, runner, signal)
            .with_context(|| format!("cannot end container {}", found.record.name))?;
        if sent && wait_until_dead(found, patience) {
            return Ok(true);
        }
    }
    Ok(!found.is_held)
}

/// Sends a signal to the process that makes a container; says whether it still does.
fn signal_runner(found: &mut Found, runner: u32, signal: Signal) -> Result<bool> {
    let process = i32::try_from(runner).ok().and_then(Pid::from_raw);
    let process = process.with_context(|| format!("{runner} is not a process"))?;
    let process = pidfd_open(process, PidfdFlags::empty());
    // Whoever has the container's lock now had it when the number was looked up: the number was its own.
    found.look_again();
    if found.state != (State::Starting { runner }) {
        return Ok(false);
    }
    process
        .and_then(|process| pidfd_send_signal(process, signal))
        .with_context(|| format!("cannot send process {runner} a signal"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use coracle_network::NetworkConfig;
    use rstest::rstest;
    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::container::{Containers, Places, Status, running};

    const ID: &str = "0123456789ab";

    /// A container that is said to be starting, and a process that could be what makes it.
    struct Starting {
        containers: Containers,
        process: Child,
        _directory: tempfile::TempDir,
    }

    /// A process that has the lock of a container, which it makes.
    fn starting(script: &str) -> Starting {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            containers: directory.path().join("containers"),
            state: directory.path().join("state"),
            store: directory.path().to_owned(),
            network: NetworkConfig::default(),
        };
        let own = places.containers.join(ID);
        fs::create_dir_all(&own).unwrap();
        let lock = File::open(&own).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script])
            .stdin(lock)
            .stdout(Stdio::piped());
        let mut process = shell.spawn().unwrap();
        let mut ready = [0];
        process
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        let mut record = running(ID, "web");
        record.status = Status::Starting {
            runner: process.id(),
        };
        record.write(&own).unwrap();
        Starting {
            containers: Containers::new(places),
            process,
            _directory: directory,
        }
    }

    #[rstest]
    #[case::asked("echo; exec sleep 100", libc::SIGTERM)]
    #[case::killed("trap '' TERM; echo; while :; do sleep 1 <&-; done", libc::SIGKILL)]
    fn container_that_is_starting_ends_when_it_is(#[case] script: &str, #[case] signal: i32) {
        let mut starting = starting(script);
        let mut found = starting.containers.find("web").unwrap();

        put_to_death(&mut found).unwrap();

        assert!(!found.is_held);
        assert_eq!(starting.process.wait().unwrap().signal(), Some(signal));
    }

    #[test]
    fn process_that_only_has_the_number_of_one_that_made_a_container_is_left_alone() {
        // Not by closing it alone: what another test starts just now has it for a moment.
        let mut starting = starting("flock -u 0; exec <&-; echo; exec sleep 100");
        let mut found = starting.containers.find(ID).unwrap();
        found.state = State::Starting {
            runner: starting.process.id(),
        };

        let over = give_up_starting(&mut found).unwrap();

        assert!(over);
        assert!(starting.process.try_wait().unwrap().is_none());
        starting.process.kill().unwrap();
        starting.process.wait().unwrap();
    }
}
