// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Failures of the agent, and how they cross the wire.
//!
//! ttrpc's status codes are too few and too broad: `NOT_FOUND` would be the container, its command or its
//! working directory. The kind therefore travels as a message of its own in the details of the status.

use protobuf::{EnumOrUnknown, Message};
use thiserror::Error;
use ttrpc::proto::{Any, Code, Status};

use crate::generated::agent::{self, ErrorDetail};

/// The name under which an `ErrorDetail` travels.
const TYPE_URL: &str = "type.googleapis.com/coracle.agent.v1.ErrorDetail";

/// What kind of failure it is, for those who act upon it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The agent failed at something that should have worked.
    Internal,
    /// The request makes no sense: a bad id, a bad signal number, a second sandbox.
    InvalidRequest,
    /// The spec is not one, or contradicts itself.
    InvalidSpec,
    /// The agent or the guest kernel does not have what the spec or the request asks for.
    Unsupported,
    /// There is no container of this id.
    NoSuchContainer,
    /// There is a container of this id already.
    ContainerExists,
    /// The container is not in the state that the call needs.
    WrongState,
    /// The command, or the interpreter that it names, does not exist in the container.
    CommandNotFound,
    /// The command exists but cannot be executed.
    CommandNotExecutable,
    /// The working directory does not exist, is none, or may not be entered.
    WorkingDirectory,
    /// A mount of the spec could not be made.
    Mount,
    /// A resource limit of the spec could not be set.
    Limit,
    /// The container has no process of this id.
    NoSuchProcess,
    /// The container has a process of this id already.
    ProcessExists,
    /// There are as many as there may be.
    TooMany,
    /// The terminal could not be made, or the process has none.
    Terminal,
    /// The network could not be set up as the host wants it.
    Network,
}

/// Every kind beside its name on the wire.
const KINDS: [(ErrorKind, agent::ErrorKind); 17] = [
    (ErrorKind::Internal, agent::ErrorKind::INTERNAL),
    (ErrorKind::InvalidRequest, agent::ErrorKind::INVALID_REQUEST),
    (ErrorKind::InvalidSpec, agent::ErrorKind::INVALID_SPEC),
    (ErrorKind::Unsupported, agent::ErrorKind::UNSUPPORTED),
    (
        ErrorKind::NoSuchContainer,
        agent::ErrorKind::NO_SUCH_CONTAINER,
    ),
    (
        ErrorKind::ContainerExists,
        agent::ErrorKind::CONTAINER_EXISTS,
    ),
    (ErrorKind::WrongState, agent::ErrorKind::WRONG_STATE),
    (
        ErrorKind::CommandNotFound,
        agent::ErrorKind::COMMAND_NOT_FOUND,
    ),
    (
        ErrorKind::CommandNotExecutable,
        agent::ErrorKind::COMMAND_NOT_EXECUTABLE,
    ),
    (
        ErrorKind::WorkingDirectory,
        agent::ErrorKind::WORKING_DIRECTORY,
    ),
    (ErrorKind::Mount, agent::ErrorKind::MOUNT),
    (ErrorKind::Limit, agent::ErrorKind::LIMIT),
    (ErrorKind::NoSuchProcess, agent::ErrorKind::NO_SUCH_PROCESS),
    (ErrorKind::ProcessExists, agent::ErrorKind::PROCESS_EXISTS),
    (ErrorKind::TooMany, agent::ErrorKind::TOO_MANY),
    (ErrorKind::Terminal, agent::ErrorKind::TERMINAL),
    (ErrorKind::Network, agent::ErrorKind::NETWORK),
];

impl ErrorKind {
    /// The exit status that shells and container engines give this failure of a command: 127 if it was not found,
    /// 126 if it cannot be executed, and none for a failure that is not the command's.
    #[must_use]
    pub fn exit_status(self) -> Option<u8> {
        match self {
            Self::CommandNotFound => Some(127),
            Self::CommandNotExecutable => Some(126),
            _ => None,
        }
    }

    /// The number that stands for this kind in a message.
    #[must_use]
    pub fn to_wire(self) -> i32 {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or(agent::ErrorKind::INTERNAL, |(_, wire)| *wire) as i32
    }

    /// The kind that `wire` stands for; [`ErrorKind::Internal`] if a newer agent sent a kind not known here.
    #[must_use]
    pub fn from_wire(wire: i32) -> Self {
        KINDS
            .iter()
            .find(|(_, known)| *known as i32 == wire)
            .map_or(Self::Internal, |(kind, _)| *kind)
    }

    fn code(self) -> Code {
        match self {
            Self::Internal => Code::INTERNAL,
            Self::InvalidRequest | Self::InvalidSpec => Code::INVALID_ARGUMENT,
            Self::Unsupported => Code::UNIMPLEMENTED,
            Self::NoSuchContainer | Self::NoSuchProcess | Self::CommandNotFound => Code::NOT_FOUND,
            Self::ContainerExists | Self::ProcessExists => Code::ALREADY_EXISTS,
            Self::TooMany => Code::RESOURCE_EXHAUSTED,
            Self::CommandNotExecutable => Code::PERMISSION_DENIED,
            Self::WrongState
            | Self::WorkingDirectory
            | Self::Mount
            | Self::Limit
            | Self::Terminal
            | Self::Network => Code::FAILED_PRECONDITION,
        }
    }
}

/// A failure of the agent: its kind for programs, its message for people.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct AgentError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// One sentence that names what failed, and why.
    pub message: String,
}

impl AgentError {
    /// A failure of `kind`, told by `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The agent's failure that `status`, the answer to a call, carries; `None` if it is of something else than this
    /// agent.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let detail = status
            .details
            .iter()
            .find(|any| any.type_url == TYPE_URL)
            .and_then(|any| ErrorDetail::parse_from_bytes(&any.value).ok())?;
        Some(Self::new(
            ErrorKind::from_wire(detail.kind.value()),
            status.message.clone(),
        ))
    }
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        let mut detail = ErrorDetail::new();
        detail.kind = EnumOrUnknown::from_i32(error.kind.to_wire());
        let mut any = Any::new();
        any.type_url = TYPE_URL.to_owned();
        // A message of one number always encodes; without it the host still has the sentence.
        any.value = detail.write_to_bytes().unwrap_or_default();
        let mut status = Self::new();
        status.set_code(error.kind.code());
        status.message = error.message;
        status.details.push(any);
        status
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        Self::RpcStatus(error.into())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_kind_crosses_the_wire() {
        for (kind, _) in KINDS {
            let error = AgentError::new(kind, "the reason");

            let received = AgentError::from_status(&error.clone().into());

            assert_eq!(received, Some(error));
        }
    }

    #[test]
    fn every_kind_on_the_wire_is_known() {
        let known: Vec<_> = KINDS.iter().map(|(_, wire)| *wire).collect();

        assert_eq!(known, <agent::ErrorKind as protobuf::Enum>::VALUES);
    }

    #[test]
    fn kind_of_a_newer_agent_is_internal() {
        assert_eq!(ErrorKind::from_wire(9999), ErrorKind::Internal);
    }

    #[test]
    fn status_of_another_is_not_the_agents() {
        let status = ttrpc::get_status(Code::NOT_FOUND, "no such method");

        assert_eq!(AgentError::from_status(&status), None);
    }

    #[rstest]
    #[case(ErrorKind::CommandNotFound, Some(127))]
    #[case(ErrorKind::CommandNotExecutable, Some(126))]
    #[case(ErrorKind::Internal, None)]
    #[case(ErrorKind::Mount, None)]
    fn exit_status_is_the_shells(#[case] kind: ErrorKind, #[case] status: Option<u8>) {
        assert_eq!(kind.exit_status(), status);
    }
}
