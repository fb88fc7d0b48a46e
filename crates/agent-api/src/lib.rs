// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod call;
mod client;
mod error;
mod hello;

pub use call::Call;
pub use client::{ANSWER_MAX, CALLS_MAX, CallError, Client, Pending};
pub use error::{AgentError, ErrorKind};
pub use hello::{Hello, HelloError};

/// Messages, client and server of `proto/agent.proto`, as generated. The client is not used: see [`Client`].
#[allow(
    dead_code,
    missing_docs,
    unused_qualifications,
    rustdoc::all,
    clippy::all,
    clippy::pedantic
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

/// The messages of `proto/agent.proto`, where each field is explained.
pub mod messages {
    pub use crate::generated::agent::{
        CheckRequest, CheckResponse, CloseStdinRequest, CloseStdinResponse, CpuStatistics,
        CreateContainerRequest, CreateContainerResponse, CreateExecRequest, CreateExecResponse,
        CreateSandboxRequest, CreateSandboxResponse, DeleteProcessRequest, DeleteProcessResponse,
        Interface, InterfaceStatistics, IoStatistics, ListProcessesRequest, ListProcessesResponse,
        MemoryStatistics, Neighbour, PidsStatistics, Process, ResizeTerminalRequest,
        ResizeTerminalResponse, Route, ShutdownRequest, ShutdownResponse, SignalProcessRequest,
        SignalProcessResponse, StartProcessRequest, StartProcessResponse, StatisticsRequest,
        StatisticsResponse, WaitProcessRequest, WaitProcessResponse,
    };
}

pub use generated::agent_ttrpc::{Agent, create_agent as methods};
pub use ttrpc;

/// The guest's vsock port on which the agent serves [`Agent`].
pub const AGENT_PORT: u32 = 1024;

/// The host's vsock port that the agent connects to once it serves: it writes one [`Hello`] line, and keeps the
/// connection open for as long as it lives.
pub const READY_PORT: u32 = 1023;

/// The host's context identifier on vsock, as seen from the guest.
pub const HOST_CID: u32 = 2;

/// The virtio-fs tag that hosts give the share.
pub const SHARE_TAG: &str = "share";

/// Where the agent mounts the share. It is the bundle to which relative paths of a spec are relative.
pub const SHARE_PATH: &str = "/run/coracle/share";

/// A container's root file system in the share.
pub const SHARE_ROOTFS: &str = "rootfs";

/// The directory of the share in which volumes are numbered: `volumes/0`, `volumes/1`, and so on.
pub const SHARE_VOLUMES: &str = "volumes";

/// The directory of the share with modules for the guest's kernel, as `coracle-guest modules` writes it. It may be
/// missing.
pub const SHARE_MODULES: &str = "modules";

/// Where the agent makes links to block devices: `virtio-SERIAL` is the device that the VMM gave this serial number.
pub const DISK_LINKS: &str = "/dev/disk/by-id";

/// The most bytes of a [spec](messages::CreateContainerRequest::spec) or a
/// [process](messages::CreateExecRequest::process) that the agent takes.
pub const SPEC_MAX: usize = 1 << 20;
