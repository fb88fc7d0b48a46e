// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asking the process that runs a container.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::EXIT_FAILURE;
use crate::cli::Directories;
use crate::container::{Containers, Found, State};
use crate::control::{ANSWER, Answer, Connection, ReceiveError, Request};
use crate::log;
use crate::print::print;
use crate::printable::printable;
use crate::until::until;

/// How much longer than the guest's agent the process that runs a container may take to answer.
const ANSWER_AFTER: Duration = Duration::from_secs(1);
/// How long it may take to write a guest's memory to a file.
const DUMP: Duration = Duration::from_secs(3600);
/// The most containers with which something is done at once.
const AT_ONCE: usize = 64;

/// The host's containers.
pub fn containers(directories: &Directories) -> Containers {
    Containers::new(directories.places())
}

/// The containers of these names, and the status to exit with: where one cannot be found, it is said why.
pub fn find_each(containers: &Containers, names: &[String]) -> (Vec<Found>, u8) {
    let mut status = 0;
    let found = names.iter().filter_map(|name| {
        let found = containers.find(name);
        found
            .inspect_err(|error| {
                log::tell_failure(error);
                status = EXIT_FAILURE;
            })
            .ok()
    });
    (found.collect(), status)
}

/// Connects to the process that runs a container.
pub fn connect(found: &Found) -> Result<Connection> {
    let name = &found.record.name;
    match found.state {
        State::Running { .. } | State::Damaged { alive: true, .. } => {}
        // Its runner may wait for whoever reads what is left of its output.
        State::Exited { .. } if found.is_held => {}
        State::Starting { .. } => {
            bail!("container {name} is only starting (to end that: coracle stop {name})")
        }
        State::Exited { .. } | State::Lost | State::Damaged { .. } => {
            bail!("container {name} is not running")
        }
    }
    match Connection::open(&found.directories.state) {
        Err(_) if !found.state.is_alive() => bail!("container {name} is not running"),
        opened => {
            opened.with_context(|| format!("cannot reach the process that runs container {name}"))
        }
    }
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
    ask_within(patience(request), found, request, descriptors)
}

/// As [`ask_with`], with another patience.
pub fn ask_within(
    patience: Duration,
    found: &Found,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Answer> {
    let mut connection = connect(found)?;
    connection.send(request, descriptors)?;
    let answer = connection
        .receive(Some(patience))
        .map_err(|error| ended(found, error))?;
    match answer {
        Some(Answer::Failed { message, .. }) => Err(anyhow!(printable(&message))),
        Some(answer) => Ok(answer),
        None => bail!("container {} gave no answer", found.record.name),
    }
}

/// Waits until no process is at the container any more, for `patience` at most; says whether that is so.
pub fn wait_until_dead(found: &mut Found, patience: Duration) -> bool {
    let is_dead = || {
        found.look_again();
        !found.is_held
    };
    until(patience, is_dead, |dead| *dead)
}

/// Does the same to each of the containers that are named, to all at once, and says how it went with each; returns the
/// status to exit with.
pub fn for_each(
    directories: &Directories,
    names: &[String],
    act: impl Fn(Found) -> Result<()> + Sync,
) -> Result<u8> {
    let containers = containers(directories);
    for_each_name(names, |name| containers.find(name).and_then(&act))
}

/// As [`for_each`], by the names alone.
pub fn for_each_name(names: &[String], act: impl Fn(&str) -> Result<()> + Sync) -> Result<u8> {
    let outcomes = at_once(names, |name| act(name));
    let outcomes = RefCell::new(outcomes.into_iter());
    each(names, |_| outcomes.borrow_mut().next().unwrap_or(Ok(())))
}

/// What comes of each, in their order, where each takes its time.
pub fn at_once<T: Sync, R: Send>(things: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let act = &act;
    let all_of = |some: &[T]| {
        thread::scope(|scope| {
            let begin = |thing| {
                let begun = thread::Builder::new().spawn_scoped(scope, move || act(thing));
                // Without a thread for it, it is done here and now.
                begun.map_err(|_| act(thing))
            };
            let begun: Vec<_> = some.iter().map(begin).collect();
            begun
                .into_iter()
                .map(|it| it.map_or_else(|done| done, joined))
                .collect::<Vec<_>>()
        })
    };
    things.chunks(AT_ONCE).flat_map(all_of).collect()
}

/// What a thread has done; its panic is this one's.
fn joined<R>(thread: thread::ScopedJoinHandle<'_, R>) -> R {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Does the same with each of the names, and says how it went with each; returns the status to exit with.
pub fn each(names: &[String], act: impl Fn(&str) -> Result<()>) -> Result<u8> {
    let mut status = 0;
    for name in names {
        if let Err(error) = act(name).and_then(|()| print(&format!("{name}\n"))) {
            log::tell_failure(&error);
            status = EXIT_FAILURE;
        }
    }
    Ok(status)
}
