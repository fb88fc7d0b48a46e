// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest answers instead of a result: whatever its status carries, it is told as it came, and gives a
//! command no exit status but those of a command that cannot be started.
#![no_main]

use arbitrary::Arbitrary;
use coracle_agent_api::{AgentError, ErrorKind, ttrpc};
use libfuzzer_sys::fuzz_target;
use ttrpc::proto::{Any, Code, Status};

#[derive(Arbitrary, Debug)]
struct Input<'i> {
    message: String,
    details: Vec<Detail<'i>>,
}

#[derive(Arbitrary, Debug)]
struct Detail<'i> {
    /// Instead of the name of the agent's own message.
    other_type: Option<String>,
    content: Content<'i>,
}

#[derive(Arbitrary, Debug)]
enum Content<'i> {
    /// A kind, known or not.
    Kind(u8),
    Bytes(&'i [u8]),
}

impl Detail<'_> {
    /// The detail; an agent's own error is where the name of its message comes from.
    fn any(&self) -> Any {
        let kind = match self.content {
            Content::Kind(kind) => ErrorKind::from_wire(i32::from(kind % 16)),
            Content::Bytes(_) => ErrorKind::Internal,
        };
        let status = Status::from(AgentError::new(kind, ""));
        let first = status.details.into_iter().next();
        let mut any = first.expect("an agent's error has a detail");
        if let Content::Bytes(bytes) = self.content {
            any.value = bytes.to_vec();
        }
        if let Some(name) = &self.other_type {
            any.type_url.clone_from(name);
        }
        any
    }
}

fuzz_target!(|input: Input<'_>| {
    let status = Status {
        message: input.message.clone(),
        details: input.details.iter().map(Detail::any).collect(),
        ..ttrpc::get_status(Code::UNKNOWN, "")
    };

    let Some(error) = AgentError::from_status(&status) else {
        return;
    };

    assert_eq!(error.message, input.message);
    assert!(matches!(error.kind.exit_status(), None | Some(126 | 127)));
    let again = AgentError::from_status(&error.clone().into());
    assert_eq!(again, Some(error));
});
