// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked of a guest's agent. No call outlives the guest: each is given up where the guest, its agent or the
//! user's patience ends first.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    CreateContainerRequest, CreateSandboxRequest, SignalContainerRequest, StartContainerRequest,
    WaitContainerRequest,
};
use coracle_agent_api::{Call, CallError, Client, Pending, SHARE_TAG};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::listeners::STREAM_PORTS;
use super::patience::Patience;
use super::signals::Forwarding;
use crate::printable::{printable, shortened};

/// How long the agent may take for one call: longer than it gives itself.
const CALL: Duration = Duration::from_secs(75);
/// How long after the guest's end an answer may still be on its way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of entropy that a guest starts with.
const ENTROPY: usize = 64;
/// Signals that an agent may leave unanswered before no more are sent.
const UNANSWERED: usize = 64;
/// The one container of a run.
const CONTAINER: &str = "container";

/// The command could not be executed: the status is the shell's for that.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CommandFailed {
    pub status: u8,
    message: String,
}

/// The agent understood what it was asked for and could not do it; nothing else is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// A guest whose agent answers.
pub struct Guest<'g> {
    agent: Client,
    /// The agent keeps it open for as long as it lives.
    alive: UnixStream,
    /// Readable once the guest has ended.
    gone: BorrowedFd<'g>,
}

/// A signal that the agent was asked to deliver.
type Sent = (i32, Pending<SignalContainerRequest>);

impl<'g> Guest<'g> {
    /// A guest by its agent, the agent's sign of life, and what shows the guest's end.
    pub fn new(agent: Client, alive: UnixStream, gone: BorrowedFd<'g>) -> Self {
        Self { agent, alive, gone }
    }

    /// Gives the guest its identity and makes its container, up to the start of its command.
    pub fn create(&mut self, hostname: &str, spec: Vec<u8>, patience: &mut Patience) -> Result<()> {
        let mut entropy = vec![0; ENTROPY];
        rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes for the guest")?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let sandbox = CreateSandboxRequest {
            hostname: hostname.into(),
            entropy,
            clock_nanoseconds: u64::try_from(now).unwrap_or(0),
            share_tag: SHARE_TAG.into(),
            ..Default::default()
        };
        self.call(&sandbox, patience)
            .context("cannot set up the guest")?;

        let [stdin, stdout, stderr] = STREAM_PORTS;
        let container = CreateContainerRequest {
            id: CONTAINER.into(),
            spec,
            stdin_port: Some(stdin),
            stdout_port: Some(stdout),
            stderr_port: Some(stderr),
            ..Default::default()
        };
        self.call(&container, patience).map(drop)
    }

    /// Starts the container's command.
    pub fn start(&mut self, patience: &mut Patience) -> Result<()> {
        let request = StartContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        self.call(&request, patience).map(drop)
    }

    /// Waits for the command's end, however long that takes, and hands on signals meanwhile; returns its status.
    pub fn wait(mut self, mut signals: Forwarding) -> Result<u8> {
        let request = WaitContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        let call = self.agent.send(&request).map_err(failure)?;
        let mut sent = Vec::new();
        let mut deadline = None;
        loop {
            if let Some(answer) = self.agent.take(&call).map_err(failure)? {
                let status = answer.exit_status;
                return u8::try_from(status).with_context(|| format!("{status} is no exit status"));
            }
            self.report_answered(&mut sent);
            while let Some(signal) = signals.pending() {
                self.signal(signal, &mut sent);
            }
            let left = deadline.map(|end: Instant| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(anyhow!("the guest ended before its container had"));
            }
            if self.wait_for_news(&signals, left)? {
                deadline = deadline.or(Some(Instant::now() + LAST_WORDS));
            }
        }
    }

    /// Waits for an answer, a signal, or the guest's end; says whether that has come. After it, `left` is the time
    /// for last words.
    fn wait_for_news(&self, signals: &Forwarding, left: Option<Duration>) -> Result<bool> {
        let ends = [self.gone, self.alive.as_fd()];
        let mut descriptors = vec![
            PollFd::from_borrowed_fd(self.agent.as_fd(), self.agent.interest()),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if left.is_none() {
            descriptors.extend(ends.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN)));
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut descriptors, left.as_ref()) {
            Ok(_) => Ok(descriptors
                .iter()
                .skip(2)
                .any(|end| !end.revents().is_empty())),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error).context("cannot wait for the guest"),
        }
    }

    /// Asks the agent to send the command a signal.
    fn signal(&mut self, signal: i32, sent: &mut Vec<Sent>) {
        if sent.len() == UNANSWERED {
            return report(signal, &anyhow!("the guest's agent does not answer"));
        }
        let request = SignalContainerRequest {
            id: CONTAINER.into(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        match self.agent.send(&request) {
            Ok(call) => sent.push((signal, call)),
            Err(error) => report(signal, &failure(error)),
        }
    }

    /// Forgets the signals that were delivered, and says which could not be.
    fn report_answered(&mut self, sent: &mut Vec<Sent>) {
        sent.retain(|(signal, call)| match self.agent.take(call) {
            Ok(None) => true,
            Ok(Some(_)) => false,
            Err(error) => {
                report(*signal, &failure(error));
                false
            }
        });
    }

    fn call<C: Call>(&mut self, request: &C, patience: &mut Patience) -> Result<C::Response> {
        let call = self.agent.send(request).map_err(failure)?;
        patience.renew(CALL);
        loop {
            if let Some(answer) = self.agent.take(&call).map_err(failure)? {
                return Ok(answer);
            }
            patience.wait_for(self.agent.as_fd(), self.agent.interest(), Some(self.gone))?;
        }
    }
}

fn report(signal: i32, error: &Error) {
    let reason = printable(&format!("{error:#}"));
    eprintln!("coracle: cannot send signal {signal} to the container: {reason}");
}

/// What went wrong in a call, as an error whose kind tells the exit status.
fn failure(error: CallError) -> Error {
    match error {
        CallError::Agent(error) => {
            let message = shortened(&error.message);
            match error.kind.exit_status() {
                Some(status) => CommandFailed { status, message }.into(),
                None => Refused(message).into(),
            }
        }
        CallError::Status { .. } => anyhow!(shortened(&error.to_string())),
        error => error.into(),
    }
}
