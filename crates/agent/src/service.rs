// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The service that the host calls: each call checked, and handed to the module that does the work.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_agent_api::messages::{
    CheckRequest, CheckResponse, CloseStdinRequest, CloseStdinResponse, CreateContainerRequest,
    CreateContainerResponse, CreateExecRequest, CreateExecResponse, CreateSandboxRequest,
    CreateSandboxResponse, DeleteProcessRequest, DeleteProcessResponse, ListProcessesRequest,
    ListProcessesResponse, Process, ResizeTerminalRequest, ResizeTerminalResponse, ShutdownRequest,
    ShutdownResponse, SignalProcessRequest, SignalProcessResponse, StartProcessRequest,
    StartProcessResponse, StatisticsRequest, StatisticsResponse, WaitProcessRequest,
    WaitProcessResponse,
};
use coracle_agent_api::{Agent, AgentError, ErrorKind, SPEC_MAX};
use ttrpc::{Result, TtrpcContext};

use crate::container::stdio::HostStreams;
use crate::container::{Containers, ProcessId};
use crate::{disks, network, sandbox, shutdown, vsock};

/// The most processes of a list: more would not fit into what a host takes for an answer.
const PROCESSES_MAX: usize = 4096;

/// The process that a request names.
macro_rules! id {
    ($request:expr) => {
        ProcessId {
            container: &$request.container_id,
            exec: &$request.exec_id,
        }
    };
}

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
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
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
        disks::link_all();
        Ok(CreateSandboxResponse::default())
    }

    fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse> {
        check_length("spec", &request.spec)?;
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let pid = self
            .containers
            .create(&request.id, &request.spec, || connect(ports))?;
        Ok(CreateContainerResponse {
            pid,
            ..CreateContainerResponse::default()
        })
    }

    fn create_exec(
        &self,
        _: &TtrpcContext,
        request: CreateExecRequest,
    ) -> Result<CreateExecResponse> {
        check_length("process", &request.process)?;
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let pid = self
            .containers
            .execute(id!(request), &request.process, || connect(ports))?;
        Ok(CreateExecResponse {
            pid,
            ..CreateExecResponse::default()
        })
    }

    fn start_process(
        &self,
        _: &TtrpcContext,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse> {
        self.containers.start(id!(request))?;
        Ok(StartProcessResponse::default())
    }

    fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Result<SignalProcessResponse> {
        self.containers
            .signal(id!(request), request.signal, request.all)?;
        Ok(SignalProcessResponse::default())
    }

    fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Result<WaitProcessResponse> {
        let end = self.containers.wait(id!(request))?;
        Ok(WaitProcessResponse {
            exit_status: end.exit.status,
            exited_at_nanoseconds: end.exit.at_nanoseconds,
            oom_killed: end.oom_killed,
            ..WaitProcessResponse::default()
        })
    }

    fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> Result<CloseStdinResponse> {
        self.containers.close_stdin(id!(request))?;
        Ok(CloseStdinResponse::default())
    }

    fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Result<ResizeTerminalResponse> {
        self.containers
            .resize(id!(request), request.columns, request.rows)?;
        Ok(ResizeTerminalResponse::default())
    }

    fn delete_process(
        &self,
        _: &TtrpcContext,
        request: DeleteProcessRequest,
    ) -> Result<DeleteProcessResponse> {
        self.containers.delete(id!(request))?;
        Ok(DeleteProcessResponse::default())
    }

    fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> Result<ListProcessesResponse> {
        let processes = self.containers.processes(&request.container_id)?;
        Ok(ListProcessesResponse {
            truncated: processes.len() > PROCESSES_MAX,
            processes: processes
                .into_iter()
                .take(PROCESSES_MAX)
                .map(|(pid, container_pid)| Process {
                    pid,
                    container_pid,
                    ..Process::default()
                })
                .collect(),
            ..ListProcessesResponse::default()
        })
    }

    fn statistics(
        &self,
        _: &TtrpcContext,
        request: StatisticsRequest,
    ) -> Result<StatisticsResponse> {
        let mut statistics = self.containers.statistics(&request.container_id)?;
        statistics.interfaces = network::counters();
        Ok(statistics)
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<ShutdownResponse> {
        self.containers.kill_all();
        shutdown::soon();
        Ok(ShutdownResponse::default())
    }
}

/// What the host may send of JSON.
fn check_length(what: &str, json: &[u8]) -> std::result::Result<(), AgentError> {
    if json.len() > SPEC_MAX {
        let message = format!("a {what} of {} bytes: at most {SPEC_MAX}", json.len());
        return Err(AgentError::new(ErrorKind::InvalidSpec, message));
    }
    Ok(())
}

/// Connects the streams to the ports for stdin, stdout and stderr.
fn connect(ports: [Option<u32>; 3]) -> std::result::Result<HostStreams, AgentError> {
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
    let [stdin, stdout, stderr] = ports;
    Ok(HostStreams {
        stdin: connect("stdin", stdin)?,
        stdout: connect("stdout", stdout)?,
        stderr: connect("stderr", stderr)?,
    })
}
