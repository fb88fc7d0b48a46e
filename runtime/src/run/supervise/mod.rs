// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container's life, from its start to its end: one loop that waits for the guest, for signals, and for what other
//! `coracle` processes ask, and is woken by nothing else.

mod exec;
mod rest;
mod session;
mod usage;

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    ResizeTerminalRequest, SignalProcessRequest, WaitProcessRequest,
};
use coracle_agent_api::{Call, Pending};
use coracle_oci::plan::SandboxPlan;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub use self::rest::finish;
use self::session::{Session, Step};
use self::usage::HostMemory;
use super::guest::{CONTAINER, Guest, failure};
use super::listeners::{Shape, StreamListeners, StreamPorts};
use super::machine::Machine;
use super::signals::{ENDING, Forwarding};
use crate::control::{Listener, Size};
use crate::log;
use crate::printable::printable;
use crate::terminal;

/// How long after the guest's end, or the container's, an answer may still be on its way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Calls for a user that an agent may leave unanswered before no more are made.
const UNANSWERED: usize = 64;
/// How long an agent may take to answer before a user who wants an end of it gets one.
const HANGS: Duration = Duration::from_secs(2);
/// Connections of other processes at a time.
const SESSIONS: usize = 256;
/// Those beyond, who can only have the machine ended.
const SPARE: usize = 16;

/// How a container came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its command ended.
    Exited {
        /// With this status.
        status: u8,
        /// The kernel had killed a process for want of memory.
        out_of_memory: bool,
    },
    /// Somebody had the machine's power cut.
    CutOff,
}

/// What a container's life needs.
pub struct Supervisor<'s> {
    guest: Guest<'s>,
    machine: &'s Machine,
    plan: &'s SandboxPlan,
    /// Directory of the guest's vsock sockets.
    vsock: &'s Path,
    /// What users call the container.
    name: &'s str,
    signals: Forwarding,
    /// What was asked of the agent for the user, whose answers say no more than that it was done.
    sent: Vec<Sent>,
    /// The user was told that the next signal ends the machine.
    has_warned: bool,
    host_memory: HostMemory,
    /// Processes there have been, the container's first included.
    processes: u32,
}

/// Something that was asked of the agent.
enum Sent {
    Signal(Instant, i32, Pending<SignalProcessRequest>),
    Resize(Pending<ResizeTerminalRequest>),
}

impl<'s> Supervisor<'s> {
    pub fn new(
        guest: Guest<'s>,
        machine: &'s Machine,
        plan: &'s SandboxPlan,
        vsock: &'s Path,
        name: &'s str,
        signals: Forwarding,
    ) -> Self {
        Self {
            guest,
            machine,
            plan,
            vsock,
            name,
            signals,
            sent: Vec::new(),
            has_warned: false,
            host_memory: HostMemory::default(),
            processes: 1,
        }
    }

    /// Stays until the container has ended, however long that takes.
    pub fn run(&mut self, listener: &Listener) -> Result<End> {
        let first = self.send(&WaitProcessRequest {
            container_id: CONTAINER.into(),
            ..Default::default()
        })?;
        let mut sessions: Vec<Session> = Vec::new();
        let mut deadline: Option<Instant> = None;
        let mut end = None;
        loop {
            let answered = self.guest.agent.answered();
            if end.is_none() {
                end = self.take(&first)?.map(|answer| {
                    let status = answer.exit_status;
                    u8::try_from(status)
                        .map(|status| End::Exited {
                            status,
                            out_of_memory: answer.oom_killed,
                        })
                        .with_context(|| format!("{status} is not an exit status"))
                });
            }
            self.report_answered();
            let mut cut_off = self.hand_on_signals();
            sessions.retain_mut(|session| match session.step(self) {
                Step::Stay => true,
                Step::Leave => false,
                Step::CutOff => {
                    cut_off = true;
                    false
                }
            });
            if cut_off {
                return Ok(End::CutOff);
            }
            // An answer that came while another was looked for does not show on the descriptor.
            if self.guest.agent.answered() != answered {
                continue;
            }
            // Whoever executes a command in the container is told how that ended, too.
            if end.is_some() {
                if !sessions.iter().any(Session::awaits_exit) {
                    break;
                }
                deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            if self.wait_for_news(listener, &sessions, left)? {
                deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
            while sessions.len() < SESSIONS + SPARE
                && let Some(connection) = listener.accept()
            {
                sessions.push(Session::new(connection, sessions.len() >= SESSIONS));
            }
        }
        end.unwrap_or_else(|| Err(anyhow!("the guest ended before its container had")))
    }

    /// The signals, after the container's end.
    pub fn into_signals(self) -> Forwarding {
        self.signals
    }

    /// Waits for an answer, a signal, a request, or the guest's end; says whether that has come. After it, `left` is
    /// the time for last words.
    fn wait_for_news(
        &self,
        listener: &Listener,
        sessions: &[Session],
        left: Option<Duration>,
    ) -> Result<bool> {
        let watched = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
        let mut descriptors = vec![
            watched(self.guest.gone),
            watched(self.guest.alive.as_fd()),
            PollFd::from_borrowed_fd(self.guest.agent.as_fd(), self.guest.agent.interest()),
            watched(self.signals.as_fd()),
        ];
        if sessions.len() < SESSIONS + SPARE {
            descriptors.push(watched(listener.as_fd()));
        }
        descriptors.extend(sessions.iter().filter_map(Session::descriptor).map(watched));
        // What shows the end goes on doing so.
        let has_ended = left.is_some();
        let awaited = &mut descriptors[if has_ended { 2 } else { 0 }..];
        let given_up = sessions.iter().filter_map(Session::deadline).min();
        let timeout = given_up
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .into_iter()
            .chain(left)
            .min()
            .and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(awaited, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(error).context("cannot wait for the guest"),
        }
        if has_ended {
            return Ok(false);
        }
        let [vmm, alive] = [0, 1].map(|index| !descriptors[index].revents().is_empty());
        Ok(vmm && self.machine.vmm().listen() || alive)
    }

    /// Sends the container the signals that have come for it, and its terminal the new size of ours; says whether the
    /// user wants the end of a machine whose agent does not answer.
    fn hand_on_signals(&mut self) -> bool {
        while let Some(signal) = self.signals.pending() {
            if ENDING.contains(&signal) && self.is_silent() {
                if self.has_warned {
                    return true;
                }
                self.has_warned = true;
                log::tell("coracle: the guest does not answer; the next signal ends its machine");
            }
            if self.sent.len() == UNANSWERED {
                let ending = format!("coracle kill {} ends the machine", self.name);
                report(
                    signal,
                    &anyhow!("the guest's agent does not answer ({ending})"),
                );
                continue;
            }
            if signal == libc::SIGWINCH {
                let size = terminal::our_size();
                let resized = size.map(|size| self.send(&resize_request("", size)));
                self.sent
                    .extend(resized.and_then(Result::ok).map(Sent::Resize));
                continue;
            }
            match self.send(&signal_request("", signal)) {
                Ok(call) => self.sent.push(Sent::Signal(Instant::now(), signal, call)),
                Err(error) => report(signal, &error),
            }
        }
        false
    }

    /// Whether the agent has left a signal unanswered for long.
    fn is_silent(&self) -> bool {
        self.sent
            .iter()
            .any(|sent| matches!(sent, Sent::Signal(at, ..) if at.elapsed() >= HANGS))
    }

    /// Forgets what was done for the user, and says which signals could not be delivered.
    fn report_answered(&mut self) {
        let agent = &mut self.guest.agent;
        self.sent.retain(|sent| match sent {
            Sent::Signal(_, signal, call) => match agent.take(call) {
                Ok(answer) => answer.is_none(),
                Err(error) => {
                    report(*signal, &failure(error));
                    false
                }
            },
            // A terminal that cannot be resized has ended.
            Sent::Resize(call) => matches!(agent.take(call), Ok(None)),
        });
        self.has_warned &= self.is_silent();
    }

    fn send<C: Call>(&mut self, request: &C) -> Result<Pending<C>> {
        self.guest.agent.send(request).map_err(failure)
    }

    fn take<C: Call>(&mut self, call: &Pending<C>) -> Result<Option<C::Response>> {
        self.guest.agent.take(call).map_err(failure)
    }

    fn forget<C>(&mut self, call: Pending<C>) {
        self.guest.agent.forget(call);
    }

    /// Ports for one more process, and a number for it.
    fn listen(&mut self, shape: Shape) -> Result<(u32, StreamPorts, StreamListeners)> {
        let number = self.processes;
        self.processes = number
            .checked_add(1)
            .context("a container can execute no more commands")?;
        let ports = StreamPorts::of_further(shape)?;
        Ok((number, ports, StreamListeners::bind(self.vsock, ports)?))
    }
}

/// What a signal to a process is.
fn signal_request(exec: &str, signal: i32) -> SignalProcessRequest {
    SignalProcessRequest {
        container_id: CONTAINER.into(),
        exec_id: exec.into(),
        signal: signal.unsigned_abs(),
        ..Default::default()
    }
}

/// What a new size of a process's terminal is.
fn resize_request(exec: &str, size: Size) -> ResizeTerminalRequest {
    ResizeTerminalRequest {
        container_id: CONTAINER.into(),
        exec_id: exec.into(),
        columns: size.columns.into(),
        rows: size.rows.into(),
        ..Default::default()
    }
}

fn report(signal: i32, error: &Error) {
    let reason = printable(&format!("{error:#}"));
    log::tell(format_args!(
        "coracle: cannot send signal {signal} to the container: {reason}"
    ));
}
