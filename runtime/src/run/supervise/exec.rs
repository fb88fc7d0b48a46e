// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A command that is executed in a running container, for another `coracle` process: that has its streams, and is told
//! how it ends.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use coracle_agent_api::Pending;
use coracle_agent_api::messages::{
    CreateExecRequest, DeleteProcessRequest, ResizeTerminalRequest, SignalProcessRequest,
    StartProcessRequest, WaitProcessRequest,
};
use coracle_oci::spec::{self, Overrides, TerminalSize};
use coracle_oci::user::{self, User};

use super::{Supervisor, UNANSWERED, resize_request, signal_request};
use crate::control::{Answer, Connection, Exec, Request};
use crate::run::guest::CONTAINER;
use crate::run::listeners::{Shape, StreamListeners};

/// A command, and how far it is.
pub struct Command {
    id: String,
    stage: Stage,
    signals: Vec<Pending<SignalProcessRequest>>,
    sizes: Vec<Pending<ResizeTerminalRequest>>,
}

enum Stage {
    /// The agent makes the process.
    Creating(Pending<CreateExecRequest>, Option<StreamListeners>),
    /// The agent has its program executed.
    Starting(Pending<StartProcessRequest>),
    Running(Pending<WaitProcessRequest>),
}

impl Command {
    /// Has the agent make the process.
    pub fn begin(supervisor: &mut Supervisor<'_>, exec: &Exec) -> Result<Self> {
        let process = process(supervisor, exec)?;
        let shape = Shape {
            stdin: exec.stdin,
            terminal: exec.terminal.is_some(),
        };
        let (number, ports, listeners) = supervisor.listen(shape)?;
        let id = format!("exec{number}");
        let request = CreateExecRequest {
            container_id: CONTAINER.into(),
            exec_id: id.clone(),
            process,
            stdin_port: ports.stdin,
            stdout_port: Some(ports.stdout),
            stderr_port: ports.stderr,
            ..Default::default()
        };
        Ok(Self {
            id,
            stage: Stage::Creating(supervisor.send(&request)?, Some(listeners)),
            signals: Vec::new(),
            sizes: Vec::new(),
        })
    }

    /// Whether the agent still makes the process.
    pub fn is_being_made(&self) -> bool {
        matches!(self.stage, Stage::Creating(..))
    }

    /// Does what can be done without waiting; returns the command's status once it has ended.
    pub fn step(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        connection: Option<&mut Connection>,
    ) -> Result<Option<u8>> {
        // Whether a signal arrived, or a size, is not told: a process that is gone takes none.
        self.signals
            .retain(|call| matches!(supervisor.take(call), Ok(None)));
        self.sizes
            .retain(|call| matches!(supervisor.take(call), Ok(None)));
        let next = match &mut self.stage {
            Stage::Creating(call, listeners) => {
                if supervisor.take(call)?.is_none() {
                    return Ok(None);
                }
                let connection = connection.context("nobody takes the command's streams")?;
                if let Some(listeners) = listeners.take() {
                    hand_over(listeners, connection)?;
                }
                Stage::Starting(supervisor.send(&StartProcessRequest {
                    container_id: CONTAINER.into(),
                    exec_id: self.id.clone(),
                    ..Default::default()
                })?)
            }
            Stage::Starting(call) => {
                if supervisor.take(call)?.is_none() {
                    return Ok(None);
                }
                Stage::Running(supervisor.send(&WaitProcessRequest {
                    container_id: CONTAINER.into(),
                    exec_id: self.id.clone(),
                    ..Default::default()
                })?)
            }
            Stage::Running(call) => {
                let Some(answer) = supervisor.take(call)? else {
                    return Ok(None);
                };
                let status = answer.exit_status;
                return u8::try_from(status)
                    .map(Some)
                    .with_context(|| format!("{status} is not an exit status"));
            }
        };
        self.stage = next;
        Ok(None)
    }

    /// Does what is asked while the command runs; what an agent that does not answer is asked without end, it is not.
    pub fn ask(&mut self, supervisor: &mut Supervisor<'_>, request: &Request) -> Result<()> {
        if self.signals.len() + self.sizes.len() >= UNANSWERED {
            return Ok(());
        }
        match request {
            Request::Signal { signal } => {
                let call = supervisor.send(&signal_request(&self.id, *signal))?;
                self.signals.push(call);
            }
            Request::Resize(size) => {
                let call = supervisor.send(&resize_request(&self.id, *size))?;
                self.sizes.push(call);
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits for nothing more, and has the agent kill the process if it runs, and forget it.
    pub fn end(self, supervisor: &mut Supervisor<'_>) {
        for call in self.signals {
            supervisor.forget(call);
        }
        for call in self.sizes {
            supervisor.forget(call);
        }
        match self.stage {
            Stage::Creating(call, _) => supervisor.forget(call),
            Stage::Starting(call) => supervisor.forget(call),
            Stage::Running(call) => supervisor.forget(call),
        }
        let deleted = supervisor.send(&DeleteProcessRequest {
            container_id: CONTAINER.into(),
            exec_id: self.id,
            ..Default::default()
        });
        // However that goes: nobody has to wait for it.
        if let Ok(call) = deleted {
            supervisor.forget(call);
        }
    }
}

/// The process that is asked for, by the rules of its container, as JSON.
fn process(supervisor: &Supervisor<'_>, exec: &Exec) -> Result<Vec<u8>> {
    let first = supervisor
        .plan
        .spec
        .process()
        .as_ref()
        .context("the container has no process")?;
    let overrides = Overrides {
        command: exec.command.clone(),
        env: exec.env.clone(),
        workdir: exec.workdir.clone(),
        terminal: exec.terminal.map(|size| TerminalSize {
            columns: size.columns,
            rows: size.rows,
        }),
        ..Overrides::default()
    };
    let user = exec
        .user
        .as_deref()
        .map(|user| resolve(supervisor, user))
        .transpose()?;
    let process = spec::exec(first, &overrides, user.as_ref())?;
    serde_json::to_vec(&process).context("cannot write the command down")
}

/// Whom a name means in the container as it is by now.
fn resolve(supervisor: &Supervisor<'_>, user: &str) -> Result<User> {
    let root = &supervisor.plan.rootfs.mount_point;
    let tree = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    Ok(user::resolve(&tree, user)?)
}

/// Gives the command's streams to whoever asked for it.
fn hand_over(listeners: StreamListeners, connection: &mut Connection) -> Result<()> {
    let streams = listeners.accept()?;
    let descriptors: Vec<_> = [
        Some(&streams.stdout),
        streams.stderr.as_ref(),
        streams.stdin.as_ref(),
    ]
    .into_iter()
    .flatten()
    .map(AsFd::as_fd)
    .collect();
    connection.send(&Answer::Streams, &descriptors)
}
