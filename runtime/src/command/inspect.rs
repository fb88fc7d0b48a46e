// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle inspect`.

use anyhow::Result;
use serde_json::{Value, json};

use super::reach::{containers, find_each};
use crate::cli::{Directories, InspectArguments};
use crate::container::{Found, State};
use crate::print::print_json;

/// Prints all that is known of containers; says which of those that are named there are not.
pub fn inspect(directories: &Directories, arguments: &InspectArguments) -> Result<u8> {
    let (found, status) = find_each(&containers(directories), &arguments.containers);
    if !found.is_empty() {
        print_json(&found.iter().map(value).collect::<Vec<_>>())?;
    }
    Ok(status)
}

/// A container, as JSON: what its record says, but for how it fares in truth.
pub fn value(found: &Found) -> Value {
    let mut value = serde_json::to_value(&found.record).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("status".to_owned(), state(&found.state));
        fields.insert(
            "directory".to_owned(),
            found.directories.container.to_string_lossy().into(),
        );
    }
    value
}

fn state(state: &State) -> Value {
    let word = state.word();
    match state {
        State::Starting { runner } => json!({ "is": word, "runner": runner }),
        State::Lost => json!({ "is": word }),
        State::Damaged { reason, alive } => {
            json!({ "is": word, "reason": reason, "alive": alive })
        }
        State::Running { since, runner } => {
            json!({ "is": word, "since": since, "runner": runner })
        }
        State::Exited { at, status, reason } => {
            json!({ "is": word, "at": at, "status": status, "reason": reason })
        }
    }
}
