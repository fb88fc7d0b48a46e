// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked of a guest's agent until its container runs. No call outlives the guest: each is given up where the
//! guest, its agent or the user's patience ends first.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    CreateContainerRequest, CreateSandboxRequest, StartProcessRequest,
};
use coracle_agent_api::{Call, CallError, Client, SHARE_TAG};

use super::listeners::StreamPorts;
use super::patience::Patience;
use crate::printable::shortened;

/// How long the agent may take for one call: longer than it gives itself.
const CALL: Duration = Duration::from_secs(75);
/// Bytes of entropy that a guest starts with.
const ENTROPY: usize = 64;
/// The one container of a run.
pub const CONTAINER: &str = "container";

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
    pub agent: Client,
    /// The agent keeps it open for as long as it lives.
    pub alive: UnixStream,
    /// Readable once the guest has ended.
    pub gone: BorrowedFd<'g>,
}

impl<'g> Guest<'g> {
    /// A guest by its agent, the agent's sign of life, and what shows the guest's end.
    pub fn new(agent: Client, alive: UnixStream, gone: BorrowedFd<'g>) -> Self {
        Self { agent, alive, gone }
    }

    /// Gives the guest its identity. `sandbox` says what else there is of it.
    pub fn set_up(
        &mut self,
        hostname: &str,
        sandbox: CreateSandboxRequest,
        patience: &mut Patience,
    ) -> Result<()> {
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
            ..sandbox
        };
        self.call(&sandbox, patience)
            .context("cannot set up the guest")
            .map(drop)
    }

    /// Makes the container, up to the start of its command.
    pub fn create(
        &mut self,
        spec: Vec<u8>,
        ports: StreamPorts,
        patience: &mut Patience,
    ) -> Result<()> {
        let container = CreateContainerRequest {
            id: CONTAINER.into(),
            spec,
            stdin_port: ports.stdin,
            stdout_port: Some(ports.stdout),
            stderr_port: ports.stderr,
            ..Default::default()
        };
        self.call(&container, patience).map(drop)
    }

    /// Starts the container's command.
    pub fn start(&mut self, patience: &mut Patience) -> Result<()> {
        let request = StartProcessRequest {
            container_id: CONTAINER.into(),
            ..Default::default()
        };
        self.call(&request, patience).map(drop)
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

/// What went wrong in a call, as an error whose kind tells the exit status.
pub fn failure(error: CallError) -> Error {
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
