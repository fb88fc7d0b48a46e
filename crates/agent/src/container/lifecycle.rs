// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One container: its first process, those that are executed in it later, and its cgroup.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::process::Signal;

use super::process::{Making, Name, Process};
use super::spawn::{self, Birth};
use super::stdio::HostStreams;
use crate::cgroup::{Cgroup, Hierarchy};
use crate::disks;
use crate::reaper::{Exit, Reaper};
use crate::spec::{self, Spec};

/// The most processes that a container has beside its first, those that ended and were not deleted included.
const EXECS_MAX: usize = 1024;

/// One container whose first process has reached its start gate, and perhaps gone through.
#[derive(Debug)]
pub(super) struct Container {
    first: Arc<Process>,
    cgroup: Cgroup,
    execs: Mutex<BTreeMap<String, Exec>>,
}

/// A further process.
#[derive(Debug)]
enum Exec {
    /// Its id is taken, and it is not yet there.
    InTheMaking,
    There(Arc<Process>),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// How it ended itself.
    pub exit: Exit,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
}

impl Container {
    /// Makes the container `id` of `spec`, which is `json` too, up to its start gate. If that fails, nothing of it is left.
    pub(super) fn make(
        id: &str,
        (spec, json): (&Spec, &[u8]),
        bundle: &str,
        host: HostStreams,
        hierarchy: &Hierarchy,
        reaper: &Reaper,
    ) -> Result<Self, AgentError> {
        let disks = disks::mount_all(spec)?;
        let mut resources = spec.linux.resources.clone();
        resources.devices.extend(disks::device_rules(spec)?);
        let cgroup = hierarchy.create(id, &resources)?;
        let making = Making {
            name: Name::First(id),
            birth: Birth {
                namespaces: spawn::birth_namespaces(spec),
                cgroup: cgroup.directory(),
                container: None,
            },
            terminal: spec.process.terminal,
            host,
            reaper,
        };
        match Process::make(making, |channel| {
            channel.send_container(bundle, json, &disks)
        }) {
            Ok(first) => Ok(Self {
                first: Arc::new(first),
                cgroup,
                execs: Mutex::default(),
            }),
            Err(mut error) => {
                if error.kind == ErrorKind::Internal && cgroup.oom_killed() {
                    error.message.push_str("; it ran out of memory");
                }
                // The failure to tell is the first one.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Makes a further process of `process`, which is `json` too, up to its start gate. Gives its PID.
    ///
    /// `connect` is asked for the streams to the host once it is known that the process may be made.
    pub(super) fn execute(
        &self,
        name: (&str, &str),
        (process, json): (&spec::Process, &[u8]),
        connect: impl FnOnce() -> Result<HostStreams, AgentError>,
        reaper: &Reaper,
    ) -> Result<u32, AgentError> {
        let (id, exec) = name;
        self.check_running(id)?;
        self.reserve(id, exec)?;
        let made = connect().and_then(|host| {
            let making = Making {
                name: Name::Further(id, exec),
                birth: Birth {
                    namespaces: 0,
                    cgroup: self.cgroup.directory(),
                    container: Some(self.first.descriptor()),
                },
                terminal: process.terminal,
                host,
                reaper,
            };
            Process::make(making, |channel| channel.send_process(json))
        });
        let mut execs = self.execs();
        match made {
            Ok(process) => {
                let pid = process.pid();
                execs.insert(exec.to_owned(), Exec::There(Arc::new(process)));
                Ok(pid)
            }
            Err(error) => {
                execs.remove(exec);
                // That it has ended meanwhile says more than what this led to.
                self.check_running(id)?;
                Err(error)
            }
        }
    }

    fn check_running(&self, id: &str) -> Result<(), AgentError> {
        if self.first.is_running() {
            return Ok(());
        }
        Err(AgentError::new(
            ErrorKind::WrongState,
            format!("container {id} is not running"),
        ))
    }

    fn reserve(&self, id: &str, exec: &str) -> Result<(), AgentError> {
        let mut execs = self.execs();
        let refuse = |kind, message| Err(AgentError::new(kind, message));
        if execs.contains_key(exec) {
            let message = format!("container {id} has a process {exec} already");
            return refuse(ErrorKind::ProcessExists, message);
        }
        if execs.len() >= EXECS_MAX {
            let message =
                format!("container {id} has {EXECS_MAX} further processes, as many as it may");
            return refuse(ErrorKind::TooMany, message);
        }
        execs.insert(exec.to_owned(), Exec::InTheMaking);
        Ok(())
    }

    /// The process `exec`, or the first one if that is empty.
    pub(super) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, AgentError> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.first));
        }
        match self.execs().get(exec) {
            Some(Exec::There(process)) => Ok(Arc::clone(process)),
            Some(Exec::InTheMaking) => Err(AgentError::new(
                ErrorKind::WrongState,
                format!("process {exec} of container {id} is still being made"),
            )),
            None => Err(AgentError::new(
                ErrorKind::NoSuchProcess,
                format!("container {id} has no process {exec}"),
            )),
        }
    }

    /// Kills the further process `exec` if it still runs and forgets it; without one, does nothing.
    pub(super) fn delete(&self, id: &str, exec: &str) -> Result<(), AgentError> {
        let process = match self.process(id, exec) {
            Err(error) if error.kind == ErrorKind::NoSuchProcess => return Ok(()),
            result => result?,
        };
        process
            .kill()
            .map_err(|error| Name::Further(id, exec).failed("end", error))?;
        self.execs().remove(exec);
        Ok(())
    }

    /// Its first process.
    pub(super) fn first(&self) -> &Process {
        &self.first
    }

    /// Its cgroup.
    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Sends a signal to all processes.
    pub(super) fn signal_all(&self, signal: Signal) -> io::Result<()> {
        if signal == Signal::KILL && self.cgroup.kill().is_ok() {
            return Ok(());
        }
        for pid in self.cgroup.processes()? {
            let Some(pid) = rustix::process::Pid::from_raw(pid) else {
                continue;
            };
            match rustix::process::kill_process(pid, signal) {
                Err(rustix::io::Errno::SRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Waits until a process has ended and all of its output is with the host.
    pub(super) fn wait(&self, process: &Process) -> End {
        End {
            exit: process.wait(),
            oom_killed: self.cgroup.oom_killed(),
        }
    }

    /// Kills what is left and removes its cgroup.
    pub(super) fn destroy(&self, id: &str) -> Result<(), AgentError> {
        self.first
            .kill()
            .and_then(|()| self.cgroup.remove())
            .map_err(|error| {
                AgentError::new(
                    ErrorKind::Internal,
                    format!("cannot remove container {id}: {error}"),
                )
            })
    }

    /// Locks, also what a thread that panicked left locked: entries are put in and taken out whole.
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
