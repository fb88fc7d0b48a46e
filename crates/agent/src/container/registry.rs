// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which containers there are, by their ids.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::process::Signal;

use super::lifecycle::{Container, End};
use super::stdio::HostStreams;
use crate::cgroup::Hierarchy;
use crate::reaper::Reaper;
use crate::spec::Spec;

/// The longest id.
const ID_MAX: usize = 128;

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
        check_id(id)?;
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
        let pid = made.pid();
        lock(&self.by_id).insert(id.to_owned(), Entry::There(Arc::new(made)));
        Ok(pid)
    }

    /// Opens the start gate of a container.
    ///
    /// # Errors
    ///
    /// The container has been started before, or its command cannot be executed.
    pub fn start(&self, id: &str) -> Result<(), AgentError> {
        self.get(id)?.start(id)
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    ///
    /// # Errors
    ///
    /// There is no such container or signal.
    pub fn signal(&self, id: &str, number: u32, all: bool) -> Result<(), AgentError> {
        let container = self.get(id)?;
        let signal = signal_of(number)?;
        let sent = if all {
            container.signal_all(signal)
        } else {
            container.signal(signal)
        };
        sent.map_err(|error| {
            AgentError::new(
                ErrorKind::Internal,
                format!("cannot send signal {number} to container {id}: {error}"),
            )
        })
    }

    /// Waits until a container has ended and all of its output is with the host.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn wait(&self, id: &str) -> Result<End, AgentError> {
        Ok(self.get(id)?.wait())
    }

    /// Ends a container's standard input once what has arrived is delivered.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn close_stdin(&self, id: &str) -> Result<(), AgentError> {
        self.get(id)?.close_stdin();
        Ok(())
    }

    /// Kills what is left of a container and forgets it; without a container, does nothing.
    ///
    /// # Errors
    ///
    /// The container is just being made, or does not end.
    pub fn delete(&self, id: &str) -> Result<(), AgentError> {
        if !lock(&self.by_id).contains_key(id) {
            return Ok(());
        }
        self.get(id)?.destroy(id)?;
        lock(&self.by_id).remove(id);
        Ok(())
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
                let _ = container.signal(Signal::KILL);
            }
            container.wait_killed();
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

/// An id becomes a directory's name, and must not be able to leave its place.
fn check_id(id: &str) -> Result<(), AgentError> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_.-".contains(character);
    if id.is_empty() || id.len() > ID_MAX || id.starts_with('.') || !id.chars().all(plain) {
        return Err(AgentError::new(
            ErrorKind::InvalidRequest,
            format!("`{}` is no container id", id.escape_default()),
        ));
    }
    Ok(())
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
        check_id(id).unwrap();
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
        assert_eq!(check_id(id).unwrap_err().kind, ErrorKind::InvalidRequest);
    }

    #[test]
    fn id_that_is_too_long_is_refused() {
        assert!(check_id(&"x".repeat(ID_MAX)).is_ok());
        assert!(check_id(&"x".repeat(ID_MAX + 1)).is_err());
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
    #[case(1)]
    #[case(9)]
    #[case(34)]
    #[case(64)]
    fn every_signal_can_be_sent(#[case] number: u32) {
        assert_eq!(signal_of(number).unwrap().as_raw().cast_unsigned(), number);
    }
}
