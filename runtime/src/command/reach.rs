// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asking the process that runs a container.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::EXIT_FAILURE;
use crate::cli::Directories;
use crate::container::{Containers, Found, Places, State};
use crate::control::{ANSWER, Answer, Connection, ReceiveError, Request};
use crate::log;
use crate::printable::printable;

/// How much longer than the guest's agent the process that runs a container may take to answer.
const ANSWER_AFTER: Duration = Duration::from_secs(1);
/// How long it may take to write a guest's memory to a file.
const DUMP: Duration = Duration::from_secs(3600);
/// Pause between two looks at a container that is to end.
const PAUSE: Duration = Duration::from_millis(20);

/// The host's containers.
pub fn containers(directories: &Directories) -> Containers {
    Containers::new(Places::of(directories))
}

/// Connects to the process that runs a container.
pub fn connect(found: &Found) -> Result<Connection> {
    let name = &found.record.name;
    match found.state {
        State::Running { .. } => {}
        State::Starting => bail!("container {name} is only starting"),
        // Its runner may wait for whoever reads what is left of its output.
        State::Exited { .. } if found.is_held => {}
        State::Exited { .. } | State::Lost => bail!("container {name} does not run"),
    }
    Connection::open(&found.directories.state)
        .with_context(|| format!("cannot reach the process that runs container {name}"))
}

/// How long an answer may take.
fn patience(request: &Request) -> Duration {
    match request {
        Request::Dump => DUMP,
        _ => ANSWER + ANSWER_AFTER,
    }
}

/// Why a connection gave no answer.
pub fn ended(found: &Found, error: ReceiveError) -> Error {
    let name = &found.record.name;
    match error {
        ReceiveError::HungUp => anyhow!("container {name} has ended"),
        error => Error::new(error).context(format!("container {name} gave no answer")),
    }
}

/// Asks for one thing and waits for the answer.
pub fn ask(found: &Found, request: &Request) -> Result<Answer> {
    ask_with(found, request, &[])
}

/// As [`ask`], with descriptors beside it.
pub fn ask_with(
    found: &Found,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Answer> {
    let mut connection = connect(found)?;
    connection.send(request, descriptors)?;
    let answer = connection
        .receive(Some(patience(request)))
        .map_err(|error| ended(found, error))?;
    match answer {
        Some(Answer::Failed { message, .. }) => Err(anyhow!(printable(&message))),
        Some(answer) => Ok(answer),
        None => bail!("container {} gave no answer", found.record.name),
    }
}

/// Waits until no process is at the container any more, for `patience` at most; says whether that is so.
pub fn wait_until_dead(found: &mut Found, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        found.look_again();
        if !found.is_held {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// Does the same to each of the containers that are named, and says how it went with each; returns the status to exit
/// with.
pub fn for_each(
    directories: &Directories,
    names: &[String],
    act: impl Fn(Found) -> Result<()>,
) -> Result<u8> {
    let containers = containers(directories);
    each(names, |name| containers.find(name).and_then(&act))
}

/// Does the same with each of the names, and says how it went with each; returns the status to exit with.
pub fn each(names: &[String], act: impl Fn(&str) -> Result<()>) -> Result<u8> {
    let mut status = 0;
    for name in names {
        match act(name) {
            Ok(()) => println!("{name}"),
            Err(error) => {
                log::tell_failure(&error);
                status = EXIT_FAILURE;
            }
        }
    }
    Ok(status)
}
