// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes over the control socket once the machine runs: requests and events, one a line, as JSON.

use serde::{Deserialize, Serialize};

use crate::{Exit, VcpuState};

/// What the controlling process asks of a running machine. Each request has one answer: [`Event::Done`],
/// [`Event::Failed`] or what the [`Action`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// What is to be done.
    #[serde(rename = "request")]
    pub action: Action,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// All vCPUs leave the guest and stay outside. Done twice is done.
    Pause,
    /// They go on.
    Resume,
    /// Where each vCPU stands, by [`Event::Vcpus`]. They leave the guest for a moment.
    Vcpus,
    /// A core dump of guest memory and registers into the regular file whose descriptor comes with the request
    /// (`SCM_RIGHTS`, in the message that the request is in); what it holds is replaced. Of several dumps in a message
    /// each takes a descriptor, in their order. One whose request is not fulfilled is closed. vCPUs and the devices of the
    /// event loop stand still meanwhile.
    Dump,
    /// Gives up the request of this number, if it came before and has no answer yet. It fails: without being begun, or, of
    /// a dump that is being written, before its end, so that the file is no dump.
    Cancel(u64),
}

/// What the VMM says to the controlling process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The guest runs.
    Running,
    /// A request was fulfilled.
    Done {
        /// The request's.
        id: u64,
    },
    /// A request was not fulfilled. The machine is as it was before it.
    Failed {
        /// The request's; 0 for one that cannot be read.
        id: u64,
        /// What was wrong, from the general to the particular.
        message: String,
    },
    /// The answer to [`Action::Vcpus`].
    Vcpus {
        /// The request's.
        id: u64,
        /// Each vCPU, in the order of their numbers.
        vcpus: Vec<VcpuState>,
    },
    /// The machine ended in an ordinary way. The last event.
    Exit {
        /// How.
        reason: Exit,
    },
    /// The machine could not start or go on. The last event.
    Error {
        /// What was wrong, from the general to the particular.
        message: String,
    },
}

impl Event {
    /// The event as a line.
    pub(crate) fn line(&self) -> String {
        // An event has nothing that JSON could not express.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::running(Event::Running, r#"{"event":"running"}"#)]
    #[case::done(Event::Done { id: 7 }, r#"{"event":"done","id":7}"#)]
    #[case::failed(Event::Failed { id: 7, message: "no".to_owned() }, r#"{"event":"failed","id":7,"message":"no"}"#)]
    #[case::exit(Event::Exit { reason: Exit::TripleFault }, r#"{"event":"exit","reason":"triple_fault"}"#)]
    #[case::error(Event::Error { message: "no".to_owned() }, r#"{"event":"error","message":"no"}"#)]
    fn event_is_a_line_of_json(#[case] event: Event, #[case] expected: &str) {
        let line = event.line();

        assert_eq!(line, format!("{expected}\n"));
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[rstest]
    #[case(Action::Pause, r#"{"id":3,"request":"pause"}"#)]
    #[case(Action::Dump, r#"{"id":3,"request":"dump"}"#)]
    #[case(Action::Cancel(2), r#"{"id":3,"request":{"cancel":2}}"#)]
    fn request_is_json(#[case] action: Action, #[case] expected: &str) {
        let request = Request { id: 3, action };

        assert_eq!(serde_json::to_string(&request).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Request>(expected).unwrap(), request);
    }
}
