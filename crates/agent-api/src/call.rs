// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which request belongs to which method, and what answers it.

use protobuf::Message;

use crate::messages::{
    CheckRequest, CheckResponse, CloseStdinRequest, CloseStdinResponse, CreateContainerRequest,
    CreateContainerResponse, CreateExecRequest, CreateExecResponse, CreateSandboxRequest,
    CreateSandboxResponse, DeleteProcessRequest, DeleteProcessResponse, ListProcessesRequest,
    ListProcessesResponse, ResizeTerminalRequest, ResizeTerminalResponse, ShutdownRequest,
    ShutdownResponse, SignalProcessRequest, SignalProcessResponse, StartProcessRequest,
    StartProcessResponse, StatisticsRequest, StatisticsResponse, WaitProcessRequest,
    WaitProcessResponse,
};

/// A request to the agent.
pub trait Call: Message {
    /// The method that takes it.
    const METHOD: &'static str;
    /// What the method answers.
    type Response: Message;
}

/// Pairs each request with its method and response.
macro_rules! calls {
    ($($method:literal: $request:ty => $response:ty,)*) => {
        $(impl Call for $request {
            const METHOD: &'static str = $method;
            type Response = $response;
        })*

        #[cfg(test)]
        const METHODS: &[&str] = &[$($method),*];
    };
}

calls! {
    "Check": CheckRequest => CheckResponse,
    "CreateSandbox": CreateSandboxRequest => CreateSandboxResponse,
    "CreateContainer": CreateContainerRequest => CreateContainerResponse,
    "CreateExec": CreateExecRequest => CreateExecResponse,
    "StartProcess": StartProcessRequest => StartProcessResponse,
    "SignalProcess": SignalProcessRequest => SignalProcessResponse,
    "WaitProcess": WaitProcessRequest => WaitProcessResponse,
    "CloseStdin": CloseStdinRequest => CloseStdinResponse,
    "ResizeTerminal": ResizeTerminalRequest => ResizeTerminalResponse,
    "DeleteProcess": DeleteProcessRequest => DeleteProcessResponse,
    "ListProcesses": ListProcessesRequest => ListProcessesResponse,
    "Statistics": StatisticsRequest => StatisticsResponse,
    "Shutdown": ShutdownRequest => ShutdownResponse,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::{Agent, methods};

    struct Nothing;

    impl Agent for Nothing {}

    #[test]
    fn every_method_of_the_service_can_be_called_by_its_name() {
        let served: BTreeSet<_> = methods(Arc::new(Nothing)).into_keys().collect();

        let called = METHODS
            .iter()
            .map(|method| format!("/coracle.agent.v1.Agent/{method}"))
            .collect();

        assert_eq!(served, called);
    }
}
