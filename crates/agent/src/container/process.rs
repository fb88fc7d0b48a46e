// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One process that the host asked for: a container's first, or a further one in it. Made up to its start gate, started,
//! signalled and waited for.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::process::Signal;

use super::pipes::Pipes;
use super::spawn::{self, Birth};
use super::stdio::{HostStreams, ProcessEnds, Streams};
use super::terminal::Terminal;
use crate::channel::{Answer, Channel, Ready};
use crate::reaper::{Child, Exit, Reaper};

/// How long a process may take to make its container, and then to execute its command. Mounts wait for the host's
/// file server, so it is long.
const SET_UP_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed process may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process that has reached its start gate, and perhaps gone through.
#[derive(Debug)]
pub(super) struct Process {
    child: Arc<Child>,
    streams: Streams,
    /// The way to the process at its gate; gone once the gate was opened.
    gate: Mutex<Option<Channel>>,
    started: AtomicBool,
}

/// What people call a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name<'a> {
    /// The first of a container.
    First(&'a str),
    /// A further one, and its container.
    Further(&'a str, &'a str),
}

/// What a process is made of.
pub(super) struct Making<'a> {
    pub name: Name<'a>,
    pub birth: Birth<'a>,
    /// Its standard streams are a terminal.
    pub terminal: bool,
    pub host: HostStreams,
    pub reaper: &'a Reaper,
}

impl Process {
    /// Makes a process up to its start gate; `deliver` tells it what it is to be. If that fails, nothing of it is left.
    pub(super) fn make(
        making: Making<'_>,
        deliver: impl FnOnce(&mut Channel) -> io::Result<()>,
    ) -> Result<Self, AgentError> {
        let Making {
            name,
            birth,
            terminal,
            host,
            reaper,
        } = making;
        if terminal && host.stderr.is_some() {
            let message = format!("{name} has a terminal, and no stderr beside it");
            return Err(AgentError::new(ErrorKind::InvalidRequest, message));
        }
        let (pipes, host, ends) = match terminal {
            true => ProcessEnds::null().map(|ends| (None, host, ends)),
            false => {
                Pipes::start(host).map(|(pipes, ends)| (Some(pipes), HostStreams::default(), ends))
            }
        }
        .map_err(|error| name.failed("make the standard streams of", error))?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| name.failed("make a channel to", error))?;
        let born = reaper
            .spawn(|| spawn::spawn(&birth, &ends, theirs.as_fd()))
            .map_err(|error| name.failed("start", error))?;
        // Only the process holds its ends now.
        drop((ends, theirs));

        let mut channel = Channel::new(ours);
        let ready = reach_gate(&mut channel, deliver, name, &born);
        let made = ready.and_then(|ready| {
            let child = match ready.process {
                None => Arc::clone(&born),
                Some(process) => {
                    let child = reaper
                        .adopt(process)
                        .map_err(|error| name.failed("find", error))?;
                    // Its maker is done, and counts among the container's processes no longer.
                    born.wait_timeout(KILL_DEADLINE);
                    child
                }
            };
            let streams = match (pipes, ready.terminal) {
                (Some(pipes), _) => Ok(Streams::Pipes(pipes)),
                (None, Some(terminal)) => {
                    Terminal::start(terminal, child.descriptor(), host).map(Streams::Terminal)
                }
                (None, None) => Err(io::ErrorKind::InvalidData.into()),
            };
            let streams = streams.map_err(|error| name.failed("use the terminal of", error));
            if streams.is_err() {
                // It is told no more, and ends at its gate.
                let _ = child.signal(Signal::KILL);
            }
            Ok(Self {
                child,
                streams: streams?,
                gate: Mutex::new(Some(channel)),
                started: AtomicBool::new(false),
            })
        });
        if made.is_err() {
            // It has ended, or SIGKILL reaches it.
            let _ = born.signal(Signal::KILL);
            born.wait_timeout(KILL_DEADLINE);
        }
        made
    }

    /// Its PID.
    pub(super) fn pid(&self) -> u32 {
        // PIDs are positive.
        self.child.pid().unsigned_abs()
    }

    /// Its PID descriptor.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.child.descriptor()
    }

    /// Whether its command runs.
    pub(super) fn is_running(&self) -> bool {
        self.started.load(Ordering::Acquire) && !self.child.has_ended()
    }

    /// Opens the start gate.
    pub(super) fn start(&self, name: Name<'_>) -> Result<(), AgentError> {
        let wrong_state = |message: String| AgentError::new(ErrorKind::WrongState, message);
        // Even of a thread that panicked: the gate is taken whole. It is not kept locked while the process answers.
        let gate = self
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut channel =
            gate.ok_or_else(|| wrong_state(format!("{name} has been started before")))?;
        let answer = channel
            .open_gate()
            .and_then(|()| channel.receive_answer())
            .map_err(|error| wrong_state(format!("{name} ended before it was started: {error}")))?;
        match answer {
            Answer::Ended => {
                self.started.store(true, Ordering::Release);
                Ok(())
            }
            Answer::Failed(error) => Err(error),
            Answer::Ready(_) => Err(AgentError::new(
                ErrorKind::Internal,
                format!("{name} answered out of turn"),
            )),
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Waits until it has ended and all output is with the host.
    pub(super) fn wait(&self) -> Exit {
        let exit = self.child.wait();
        self.streams.drain();
        exit
    }

    /// Waits for its end, after it was killed.
    pub(super) fn wait_killed(&self) -> Option<Exit> {
        self.child.wait_timeout(KILL_DEADLINE)
    }

    /// Kills it and waits for its end.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.child.signal(Signal::KILL)?;
        match self.wait_killed() {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends the standard input once what has arrived is delivered.
    pub(super) fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    /// Sets the size of its terminal.
    pub(super) fn resize(&self, name: Name<'_>, columns: u16, rows: u16) -> Result<(), AgentError> {
        let Streams::Terminal(terminal) = &self.streams else {
            let message = format!("{name} has no terminal");
            return Err(AgentError::new(ErrorKind::Terminal, message));
        };
        terminal
            .resize(columns, rows)
            .map_err(|error| name.failed("set the size of the terminal of", error))
    }
}

/// Tells the process what it is to be and waits until it is at its gate.
fn reach_gate(
    channel: &mut Channel,
    deliver: impl FnOnce(&mut Channel) -> io::Result<()>,
    name: Name<'_>,
    born: &Child,
) -> Result<Ready, AgentError> {
    let reached = channel
        .set_deadline(SET_UP_DEADLINE)
        .and_then(|()| deliver(channel))
        .and_then(|()| channel.receive_answer());
    match reached {
        Ok(Answer::Ready(ready)) => Ok(ready),
        Ok(Answer::Failed(error)) => Err(error),
        Ok(Answer::Ended) => {
            let how = match born.wait_timeout(KILL_DEADLINE) {
                Some(exit) => format!("with status {}", exit.status),
                None => "its channel but not itself".to_owned(),
            };
            let message = format!("{name} ended {how} while it was made");
            Err(AgentError::new(ErrorKind::Internal, message))
        }
        Err(error) => Err(name.failed("reach", error)),
    }
}

impl Name<'_> {
    /// A failure to do something with the process.
    pub(super) fn failed(self, what: &str, error: io::Error) -> AgentError {
        AgentError::new(
            ErrorKind::Internal,
            format!("cannot {what} {self}: {error}"),
        )
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First(container) => write!(f, "the first process of container {container}"),
            Self::Further(container, process) => {
                write!(f, "process {process} of container {container}")
            }
        }
    }
}
