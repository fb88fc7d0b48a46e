// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked of a guest's agent. No call outlives the guest: each is made on a thread of its
//! own, and given up where the guest, the agent's connection or the user's patience ends first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use coracle_agent_api::messages::{
    CreateContainerRequest, CreateSandboxRequest, SignalContainerRequest, StartContainerRequest,
    WaitContainerRequest,
};
use coracle_agent_api::{AgentClient, AgentError, SHARE_TAG, ttrpc};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::listeners::STREAM_PORTS;
use super::patience::Patience;
use crate::printable::printable;

/// How long the agent may take for one call: longer than it gives itself.
const CALL: Duration = Duration::from_secs(75);
/// How long after the guest's end an answer may still be on its way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of entropy that a guest starts with.
const ENTROPY: usize = 64;
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
    agent: AgentClient,
    /// The agent keeps it open for as long as it lives.
    alive: UnixStream,
    /// Readable once the guest has ended.
    gone: BorrowedFd<'g>,
}

/// A call under way: its outcome, and a descriptor that is readable when there is one.
struct Call<T> {
    outcome: Receiver<ttrpc::Result<T>>,
    done: OwnedFd,
}

impl<'g> Guest<'g> {
    /// A guest by its agent, the agent's sign of life, and what shows the guest's end.
    pub fn new(agent: AgentClient, alive: UnixStream, gone: BorrowedFd<'g>) -> Self {
        Self { agent, alive, gone }
    }

    /// Gives the guest its identity and makes its container, up to the start of its command.
    pub fn create(&self, hostname: &str, spec: Vec<u8>, patience: &mut Patience) -> Result<()> {
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
        self.call(patience, move |agent, context| {
            agent.create_sandbox(context, &sandbox)
        })
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
        self.call(patience, move |agent, context| {
            agent.create_container(context, &container)
        })
        .map(drop)
    }

    /// Starts the container's command.
    pub fn start(&self, patience: &mut Patience) -> Result<()> {
        let request = StartContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        self.call(patience, move |agent, context| {
            agent.start_container(context, &request)
        })
        .map(drop)
    }

    /// Waits for the command's end, however long that takes; returns its status.
    pub fn wait(&self) -> Result<u8> {
        let request = WaitContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        let agent = self.agent.clone();
        let call = Call::start(move || {
            agent.wait_container(ttrpc::context::with_duration(Duration::ZERO), &request)
        })?;
        let mut descriptors = [call.done.as_fd(), self.gone, self.alive.as_fd()]
            .map(|each| PollFd::from_borrowed_fd(each, PollFlags::IN));
        while let Err(error) = poll(&mut descriptors, None) {
            if error != Errno::INTR {
                return Err(error).context("cannot wait for the guest");
            }
        }
        let answer = match call.outcome.recv_timeout(LAST_WORDS) {
            Ok(answer) => answer.map_err(failure)?,
            Err(_) => bail!("the guest ended before its container had"),
        };
        u8::try_from(answer.exit_status)
            .with_context(|| format!("{} is no exit status", answer.exit_status))
    }

    /// A function that sends a signal to the command.
    pub fn signaller(&self) -> impl Fn(i32) + Send + 'static {
        let agent = self.agent.clone();
        move |signal| {
            let request = SignalContainerRequest {
                id: CONTAINER.into(),
                signal: signal.unsigned_abs(),
                ..Default::default()
            };
            if let Err(error) =
                agent.signal_container(ttrpc::context::with_duration(CALL), &request)
            {
                let reason = printable(&format!("{:#}", failure(error)));
                eprintln!("coracle: cannot send signal {signal} to the container: {reason}");
            }
        }
    }

    fn call<T: Send + 'static>(
        &self,
        patience: &mut Patience,
        call: impl FnOnce(&AgentClient, ttrpc::context::Context) -> ttrpc::Result<T> + Send + 'static,
    ) -> Result<T> {
        let agent = self.agent.clone();
        let call = Call::start(move || call(&agent, ttrpc::context::with_duration(CALL)))?;
        patience.renew(CALL);
        patience.wait(call.done.as_fd(), Some(self.gone))?;
        match call.outcome.recv_timeout(LAST_WORDS) {
            Ok(answer) => answer.map_err(failure),
            Err(_) => bail!("the guest's agent does not answer"),
        }
    }
}

impl<T: Send + 'static> Call<T> {
    fn start(call: impl FnOnce() -> ttrpc::Result<T> + Send + 'static) -> Result<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an event")?;
        let signal = done.try_clone().context("cannot duplicate an event")?;
        let (sender, outcome) = mpsc::channel();
        let body = move || {
            // Whoever waited may have given up.
            let _ = sender.send(call());
            let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
        };
        thread::Builder::new()
            .name("call".into())
            .spawn(body)
            .context("cannot start a thread for a call to the guest")?;
        Ok(Self { outcome, done })
    }
}

/// What went wrong in a call, as an error whose kind tells the exit status.
fn failure(error: ttrpc::Error) -> anyhow::Error {
    match AgentError::from_call(&error) {
        Some(AgentError { kind, message }) => match kind.exit_status() {
            Some(status) => CommandFailed { status, message }.into(),
            None => Refused(message).into(),
        },
        None => anyhow::Error::new(error).context("the guest's agent does not answer"),
    }
}
