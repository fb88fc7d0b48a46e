// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The service that the host calls: each call checked, and handed to the module that does the work.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_agent_api::messages::{
    CheckRequest, CheckResponse, CloseStdinRequest, CloseStdinResponse, CreateContainerRequest,
    CreateContainerResponse, CreateSandboxRequest, CreateSandboxResponse, DeleteContainerRequest,
    DeleteContainerResponse, ShutdownRequest, ShutdownResponse, SignalContainerRequest,
    SignalContainerResponse, StartContainerRequest, StartContainerResponse, WaitContainerRequest,
    WaitContainerResponse,
};
use coracle_agent_api::{Agent, AgentError, ErrorKind, SPEC_MAX};
use ttrpc::{Result, TtrpcContext};

use crate::container::Containers;
use crate::container::stdio::HostStreams;
use crate::{sandbox, shutdown, vsock};

/// The agent's side of the service.
#[derive(Debug)]
pub struct Service {
    containers: Containers,
    has_sandbox: AtomicBool,
}

impl Service {
    /// Serves `containers`.
    #[must_use]
    pub fn new(containers: Containers) -> Self {
        Self {
            containers,
            has_sandbox: AtomicBool::new(false),
        }
    }
}

impl Agent for Service {
    fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Result<CheckResponse> {
        Ok(CheckResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..CheckResponse::default()
        })
    }

    fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse> {
        if self.has_sandbox.swap(true, Ordering::SeqCst) {
            let error =
                AgentError::new(ErrorKind::WrongState, "the sandbox has been created before");
            return Err(error.into());
        }
        if let Err(error) = sandbox::create(&request) {
            self.has_sandbox.store(false, Ordering::SeqCst);
            return Err(error.into());
        }
        Ok(CreateSandboxResponse::default())
    }

    fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse> {
        if request.spec.len() > SPEC_MAX {
            let message = format!("a spec of {} bytes: at most {SPEC_MAX}", request.spec.len());
            return Err(AgentError::new(ErrorKind::InvalidSpec, message).into());
        }
        let pid = self
            .containers
            .create(&request.id, &request.spec, || connect(&request))?;
        Ok(CreateContainerResponse {
            pid,
            ..CreateContainerResponse::default()
        })
    }

    fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse> {
        self.containers.start(&request.id)?;
        Ok(StartContainerResponse::default())
    }

    fn signal_container(
        &self,
        _: &TtrpcContext,
        request: SignalContainerRequest,
    ) -> Result<SignalContainerResponse> {
        self.containers
            .signal(&request.id, request.signal, request.all)?;
        Ok(SignalContainerResponse::default())
    }

    fn wait_container(
        &self,
        _: &TtrpcContext,
        request: WaitContainerRequest,
    ) -> Result<WaitContainerResponse> {
        let end = self.containers.wait(&request.id)?;
        Ok(WaitContainerResponse {
            exit_status: end.exit.status,
            exited_at_nanoseconds: end.exit.at_nanoseconds,
            oom_killed: end.oom_killed,
            ..WaitContainerResponse::default()
        })
    }

    fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> Result<CloseStdinResponse> {
        self.containers.close_stdin(&request.id)?;
        Ok(CloseStdinResponse::default())
    }

    fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> Result<DeleteContainerResponse> {
        self.containers.delete(&request.id)?;
        Ok(DeleteContainerResponse::default())
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<ShutdownResponse> {
        self.containers.kill_all();
        shutdown::soon();
        Ok(ShutdownResponse::default())
    }
}

/// Connects the streams that `request` names.
fn connect(request: &CreateContainerRequest) -> std::result::Result<HostStreams, AgentError> {
    let connect =
        |name: &str, port: Option<u32>| -> std::result::Result<Option<OwnedFd>, AgentError> {
            port.map(vsock::connect_to_host)
                .transpose()
                .map_err(|error| {
                    AgentError::new(
                        ErrorKind::Internal,
                        format!("cannot connect {name} to the host: {error}"),
                    )
                })
        };
    Ok(HostStreams {
        stdin: connect("stdin", request.stdin_port)?,
        stdout: connect("stdout", request.stdout_port)?,
        stderr: connect("stderr", request.stderr_port)?,
    })
}
