// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is asked of a guest's agent until its container runs. No call outlives the guest: each is given up where the
//! guest, its agent or the user's patience ends first.

use std::cmp::Reverse;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow};
use coracle_agent_api::messages::{
    CreateContainerRequest, CreateSandboxRequest, StartProcessRequest,
};
use coracle_agent_api::{Call, CallError, Client, SHARE_TAG};
use coracle_oci::plan::SandboxPlan;

use super::listeners::StreamPorts;
use super::patience::Patience;
use crate::printable::{printable, shortened};

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

impl Refused {
    /// The same in the user's words: the host's file or directory instead of the guest's name for it.
    fn in_words_of(self, plan: &SandboxPlan) -> Self {
        let mounts = plan.spec.mounts().iter().flatten();
        let sources = mounts.filter_map(|mount| mount.source().as_deref());
        let mut named: Vec<_> = sources
            .filter_map(|guests| Some((guests.to_str()?, plan.host_source(guests)?)))
            .collect();
        // The name of the tenth begins as that of the first.
        named.sort_by_key(|(guests, _)| Reverse(guests.len()));
        let Self(mut message) = self;
        for (guests, hosts) in named {
            message = message.replace(guests, &printable(&hosts.to_string_lossy()));
        }
        Self(message)
    }
}

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

    /// Makes the container of `plan`, up to the start of its command.
    pub fn create(
        &mut self,
        plan: &SandboxPlan,
        ports: StreamPorts,
        patience: &mut Patience,
    ) -> Result<()> {
        let spec =
            serde_json::to_vec(&plan.spec).context("cannot write the container's specification")?;
        let container = CreateContainerRequest {
            id: CONTAINER.into(),
            spec,
            stdin_port: ports.stdin,
            stdout_port: Some(ports.stdout),
            stderr_port: ports.stderr,
            ..Default::default()
        };
        let made = self.call(&container, patience).map(drop);
        made.map_err(|error| match error.downcast::<Refused>() {
            Ok(refused) => refused.in_words_of(plan).into(),
            Err(error) => error,
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    #[test]
    fn refusal_names_what_the_user_named() {
        let volumes: Vec<_> = (0..11)
            .map(|number| format!("/volume-{number}:/{number}"))
            .collect();
        let volumes: Vec<_> = volumes.iter().map(String::as_str).collect();
        let plan = plan(&volumes, &["/image:/mnt"]);
        let said = [
            "cannot mount /share/volumes/10 on /10: it is",
            "cannot mount /share/volumes/1 on /1: it is",
            "cannot mount /dev/disk/by-id/virtio-disk0 on /mnt: it is",
        ];

        let told = said.map(|said| Refused(said.to_owned()).in_words_of(&plan).0);

        assert_eq!(
            told,
            [
                "cannot mount /volume-10 on /10: it is",
                "cannot mount /volume-1 on /1: it is",
                "cannot mount /image on /mnt: it is",
            ]
        );
    }
}
