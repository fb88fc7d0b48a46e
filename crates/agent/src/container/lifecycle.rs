// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One container: made up to its start gate, started, signalled, waited for and removed.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::process::Signal;

use super::spawn;
use super::stdio::{HostStreams, Streams};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::channel::{Answer, Channel};
use crate::reaper::{Child, Exit, Reaper};
use crate::spec::Spec;

/// How long a first process may take to make its container, and then to execute its command. Mounts wait for the host's
/// file server, so it is long.
const SET_UP_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed process may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// One container whose first process has reached its start gate, and perhaps gone through.
#[derive(Debug)]
pub(super) struct Container {
    child: Arc<Child>,
    cgroup: Cgroup,
    streams: Streams,
    /// The way to the process at its gate; gone once the gate was opened.
    gate: Mutex<Option<Channel>>,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// How its first process ended.
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
        let internal = |what: &str, error: std::io::Error| {
            AgentError::new(
                ErrorKind::Internal,
                format!("cannot {what} container {id}: {error}"),
            )
        };
        let cgroup = hierarchy.create(id, &spec.linux.resources)?;
        let abandon = |error: AgentError| {
            // The failure to tell is the first one.
            let _ = cgroup.remove();
            error
        };
        let (streams, ends) = Streams::start(host)
            .map_err(|error| abandon(internal("make the standard streams of", error)))?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| abandon(internal("make a channel to", error)))?;
        let namespaces = spawn::birth_namespaces(spec);
        let child = reaper
            .spawn(|| spawn::spawn(namespaces, cgroup.directory(), &ends, theirs.as_fd()))
            .map_err(|error| abandon(internal("start the first process of", error)))?;
        // Only the process holds its ends now.
        drop((ends, theirs));

        let mut channel = Channel::new(ours);
        let reached = channel
            .set_deadline(SET_UP_DEADLINE)
            .and_then(|()| channel.send_container(bundle, json))
            .and_then(|()| channel.receive_answer());
        let container = Self {
            child,
            cgroup,
            streams,
            gate: Mutex::new(Some(channel)),
        };
        let error = match reached {
            Ok(Answer::Ready) => return Ok(container),
            Ok(Answer::Failed(error)) => error,
            Ok(Answer::Ended) => container.early_end(id),
            Err(error) => internal("reach the first process of", error),
        };
        container.destroy(id)?;
        Err(error)
    }

    /// PID of the first process.
    pub(super) fn pid(&self) -> u32 {
        // PIDs are positive.
        self.child.pid().unsigned_abs()
    }

    /// Opens the start gate.
    pub(super) fn start(&self, id: &str) -> Result<(), AgentError> {
        // Even of a thread that panicked: the gate is taken whole. It is not kept locked while the process answers.
        let gate = self
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut channel = gate.ok_or_else(|| {
            AgentError::new(
                ErrorKind::WrongState,
                format!("container {id} has been started before"),
            )
        })?;
        let answer = channel
            .open_gate()
            .and_then(|()| channel.receive_answer())
            .map_err(|error| {
                AgentError::new(
                    ErrorKind::WrongState,
                    format!("container {id} ended before it was started: {error}"),
                )
            })?;
        match answer {
            Answer::Ended => Ok(()),
            Answer::Failed(error) => Err(error),
            Answer::Ready => Err(unexpected(id)),
        }
    }

    /// Sends a signal to the first process.
    pub(super) fn signal(&self, signal: Signal) -> std::io::Result<()> {
        self.child.signal(signal)
    }

    /// Sends a signal to all processes.
    pub(super) fn signal_all(&self, signal: Signal) -> std::io::Result<()> {
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

    /// Waits until the first process has ended and all output is with the host.
    pub(super) fn wait(&self) -> End {
        let exit = self.child.wait();
        self.streams.drain();
        End {
            exit,
            oom_killed: self.cgroup.oom_killed(),
        }
    }

    /// Waits for the end of the first process, which was killed.
    pub(super) fn wait_killed(&self) -> Option<Exit> {
        self.child.wait_timeout(KILL_DEADLINE)
    }

    /// Ends the standard input once what has arrived is delivered.
    pub(super) fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    /// Kills what is left and removes its cgroup.
    pub(super) fn destroy(&self, id: &str) -> Result<(), AgentError> {
        let failed = |error: std::io::Error| {
            AgentError::new(
                ErrorKind::Internal,
                format!("cannot remove container {id}: {error}"),
            )
        };
        self.child.signal(Signal::KILL).map_err(failed)?;
        if self.wait_killed().is_none() {
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        self.cgroup.remove().map_err(failed)
    }

    /// Why the first process ended without a word.
    fn early_end(&self, id: &str) -> AgentError {
        let exit = self.wait_killed();
        let how = match exit {
            _ if self.cgroup.oom_killed() => "for want of memory".to_owned(),
            Some(exit) => format!("with status {}", exit.status),
            None => "its channel but not itself".to_owned(),
        };
        AgentError::new(
            ErrorKind::Internal,
            format!("the first process of container {id} ended {how} while it made the container"),
        )
    }
}

fn unexpected(id: &str) -> AgentError {
    AgentError::new(
        ErrorKind::Internal,
        format!("the first process of container {id} answered out of turn"),
    )
}
