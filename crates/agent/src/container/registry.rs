// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which containers there are, by their ids.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_agent_api::messages::StatisticsResponse;
use coracle_agent_api::{AgentError, ErrorKind};
use rustix::process::Signal;

use super::lifecycle::{Container, End};
use super::process::Name;
use super::stdio::HostStreams;
use crate::cgroup::Hierarchy;
use crate::reaper::Reaper;
use crate::spec::{Process, Spec};

/// The longest id.
const ID_MAX: usize = 128;

/// A process, as the host names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId<'a> {
    /// Id of its container.
    pub container: &'a str,
    /// Its own; empty for the container's first process.
    pub exec: &'a str,
}

/// All containers.
#[derive(Debug)]
pub struct Containers {
    reaper: Arc<Reaper>,
    hierarchy: Hierarchy,
    bundle: String,
    by_id: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Clone, Debug)]
enum Entry {
    /// Its id is taken, and it is not yet there.
    InTheMaking,
    There(Arc<Container>),
}

impl Containers {
    /// No containers yet. Those to come have their cgroups in `hierarchy` and the relative paths of their specs in `bundle`.
    #[must_use]
    pub fn new(reaper: Arc<Reaper>, hierarchy: Hierarchy, bundle: String) -> Self {
        Self {
            reaper,
            hierarchy,
            bundle,
            by_id: Mutex::default(),
        }
    }

    /// Makes a container up to its start gate. Gives the PID of its first process.
    ///
    /// `connect` is asked for the streams to the host once the spec is known to be a good one.
    ///
    /// # Errors
    ///
    /// Whatever keeps the container from being made; nothing of it is left behind.
    pub fn create(
        &self,
        id: &str,
        spec: &[u8],
        connect: impl FnOnce() -> Result<HostStreams, AgentError>,
    ) -> Result<u32, AgentError> {
        check_id("container", id)?;
        let parsed = Spec::parse(spec)?;
        self.reserve(id)?;
        let made = connect()
            .and_then(|streams| {
                let spec = (&parsed, spec);
                Container::make(
                    id,
                    spec,
                    &self.bundle,
                    streams,
                    &self.hierarchy,
                    &self.reaper,
                )
            })
            .inspect_err(|_| drop(lock(&self.by_id).remove(id)))?;
        let pid = made.first().pid();
        lock(&self.by_id).insert(id.to_owned(), Entry::There(Arc::new(made)));
        Ok(pid)
    }

    /// Makes a further process in a running container, up to its start gate. Gives its PID.
    ///
    /// `connect` is asked for the streams to the host once it is known that the process may be made.
    ///
    /// # Errors
    ///
    /// The container does not run, or whatever keeps the process from being made; nothing of it is left behind.
    pub fn execute(
        &self,
        id: ProcessId<'_>,
        process: &[u8],
        connect: impl FnOnce() -> Result<HostStreams, AgentError>,
    ) -> Result<u32, AgentError> {
        check_id("process", id.exec)?;
        let container = self.get(id.container)?;
        let parsed = Process::parse(process)?;
        let name = (id.container, id.exec);
        container.execute(name, (&parsed, process), connect, &self.reaper)
    }

    /// Opens the start gate of a process.
    ///
    /// # Errors
    ///
    /// It has been started before, or its command cannot be executed.
    pub fn start(&self, id: ProcessId<'_>) -> Result<(), AgentError> {
        let container = self.get(id.container)?;
        container.process(id.container, id.exec)?.start(id.name())
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    ///
    /// There is no such process or signal.
    pub fn signal(&self, id: ProcessId<'_>, number: u32, all: bool) -> Result<(), AgentError> {
        let container = self.get(id.container)?;
        let process = container.process(id.container, id.exec)?;
        let signal = signal_of(number)?;
        let sent = if all {
            container.signal_all(signal)
        } else {
            process.signal(signal)
        };
        sent.map_err(|error| id.name().failed(&format!("send signal {number} to"), error))
    }

    /// Waits until a process has ended and all of its output is with the host.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn wait(&self, id: ProcessId<'_>) -> Result<End, AgentError> {
        let container = self.get(id.container)?;
        let process = container.process(id.container, id.exec)?;
        Ok(container.wait(&process))
    }

    /// Ends a process' standard input once what has arrived is delivered.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn close_stdin(&self, id: ProcessId<'_>) -> Result<(), AgentError> {
        let container = self.get(id.container)?;
        container.process(id.container, id.exec)?.close_stdin();
        Ok(())
    }

    /// Sets the size of a process' terminal.
    ///
    /// # Errors
    ///
    /// There is no such process, or it has no terminal.
    pub fn resize(&self, id: ProcessId<'_>, columns: u32, rows: u32) -> Result<(), AgentError> {
        let container = self.get(id.container)?;
        let process = container.process(id.container, id.exec)?;
        let (Ok(columns), Ok(rows)) = (u16::try_from(columns), u16::try_from(rows)) else {
            let message = format!("a terminal of {columns} columns and {rows} rows: at most 65535");
            return Err(AgentError::new(ErrorKind::InvalidRequest, message));
        };
        process.resize(id.name(), columns, rows)
    }

    /// Kills what is left of a process, or with the first of its whole container, and forgets it; if there is none, does
    /// nothing.
    ///
    /// # Errors
    ///
    /// It is just being made, or does not end.
    pub fn delete(&self, id: ProcessId<'_>) -> Result<(), AgentError> {
        if !lock(&self.by_id).contains_key(id.container) {
            return Ok(());
        }
        let container = self.get(id.container)?;
        if !id.exec.is_empty() {
            return container.delete(id.container, id.exec);
        }
        container.destroy(id.container)?;
        lock(&self.by_id).remove(id.container);
        Ok(())
    }

    /// What a container uses.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn statistics(&self, id: &str) -> Result<StatisticsResponse, AgentError> {
        Ok(self.get(id)?.cgroup().statistics())
    }

    /// The processes of a container: as this process numbers them, and as the container does.
    ///
    /// # Errors
    ///
    /// There is no such container, or it is going.
    pub fn processes(&self, id: &str) -> Result<Vec<(u32, u32)>, AgentError> {
        let processes = self.get(id)?.cgroup().processes().map_err(|error| {
            AgentError::new(
                ErrorKind::Internal,
                format!("cannot list the processes of container {id}: {error}"),
            )
        })?;
        Ok(processes
            .into_iter()
            .filter_map(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                Some((u32::try_from(pid).ok()?, pid_within(&status)?))
            })
            .collect())
    }

    /// Kills every container.
    pub fn kill_all(&self) {
        let containers: Vec<_> = lock(&self.by_id).values().cloned().collect();
        // One write for all; where the kernel is too old for it, their first processes take the others along.
        let killed = self.hierarchy.kill_all();
        for entry in containers {
            let Entry::There(container) = entry else {
                continue;
            };
            if killed.is_err() {
                // It has ended, or SIGKILL reaches it.
                let _ = container.first().signal(Signal::KILL);
            }
            container.first().wait_killed();
        }
    }

    fn reserve(&self, id: &str) -> Result<(), AgentError> {
        let mut by_id = lock(&self.by_id);
        if by_id.contains_key(id) {
            return Err(AgentError::new(
                ErrorKind::ContainerExists,
                format!("there is a container {id} already"),
            ));
        }
        by_id.insert(id.to_owned(), Entry::InTheMaking);
        Ok(())
    }

    fn get(&self, id: &str) -> Result<Arc<Container>, AgentError> {
        match lock(&self.by_id).get(id) {
            Some(Entry::There(container)) => Ok(Arc::clone(container)),
            Some(Entry::InTheMaking) => Err(AgentError::new(
                ErrorKind::WrongState,
                format!("container {id} is still being made"),
            )),
            None => Err(AgentError::new(
                ErrorKind::NoSuchContainer,
                format!("there is no container {id}"),
            )),
        }
    }
}

impl<'a> ProcessId<'a> {
    /// The first process of a container.
    #[must_use]
    pub fn first(container: &'a str) -> Self {
        Self {
            container,
            exec: "",
        }
    }

    fn name(self) -> Name<'a> {
        match self.exec {
            "" => Name::First(self.container),
            exec => Name::Further(self.container, exec),
        }
    }
}

/// A container's id becomes a directory's name, and must not be able to leave its place.
fn check_id(what: &str, id: &str) -> Result<(), AgentError> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_.-".contains(character);
    if id.is_empty() || id.len() > ID_MAX || id.starts_with('.') || !id.chars().all(plain) {
        return Err(AgentError::new(
            ErrorKind::InvalidRequest,
            format!("`{}` is no {what} id", id.escape_default()),
        ));
    }
    Ok(())
}

/// A process' PID in its own namespace, out of its `status` in procfs.
fn pid_within(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .next_back()?
        .parse()
        .ok()
}

fn signal_of(number: u32) -> Result<Signal, AgentError> {
    let signal = i32::try_from(number)
        .ok()
        .filter(|number| (1..=64).contains(number))
        // SAFETY: the numbers are those of the kernel's signals, and the C library, which keeps two of the real-time ones
        // for its threads, is not asked to handle them.
        .map(|number| unsafe { Signal::from_raw_unchecked(number) });
    signal.ok_or_else(|| {
        AgentError::new(
            ErrorKind::InvalidRequest,
            format!("there is no signal {number}"),
        )
    })
}

/// Locks, also what a thread that panicked left locked: entries are put in and taken out whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a")]
    #[case("web-1_2.x")]
    fn plain_id_is_accepted(#[case] id: &str) {
        check_id("container", id).unwrap();
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case(".hidden")]
    #[case("a/b")]
    #[case("a b")]
    #[case("a\0")]
    #[case("ä")]
    fn other_id_is_refused(#[case] id: &str) {
        assert_eq!(
            check_id("container", id).unwrap_err().kind,
            ErrorKind::InvalidRequest
        );
    }

    #[test]
    fn id_that_is_too_long_is_refused() {
        assert!(check_id("container", &"x".repeat(ID_MAX)).is_ok());
        assert!(check_id("container", &"x".repeat(ID_MAX + 1)).is_err());
    }

    #[rstest]
    #[case(0)]
    #[case(65)]
    #[case(u32::MAX)]
    fn number_that_is_no_signal_is_refused(#[case] number: u32) {
        assert_eq!(
            signal_of(number).unwrap_err().kind,
            ErrorKind::InvalidRequest
        );
    }

    #[rstest]
    #[case("Name:\tsh\nNSpid:\t4242\t17\t1\n", Some(1))]
    #[case("Name:\tsh\n", None)]
    fn pid_within_is_the_last(#[case] status: &str, #[case] expected: Option<u32>) {
        assert_eq!(pid_within(status), expected);
    }

    #[rstest]
    #[case(1)]
    #[case(9)]
    #[case(34)]
    #[case(64)]
    fn every_signal_can_be_sent(#[case] number: u32) {
        assert_eq!(signal_of(number).unwrap().as_raw().cast_unsigned(), number);
    }
}
