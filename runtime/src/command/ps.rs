// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle ps`.

use anyhow::Result;

use super::inspect::value;
use super::reach::containers;
use crate::cli::{Directories, PsArguments};
use crate::container::{Found, State};
use crate::print::{print, print_json};
use crate::printable::cut;
use crate::table::table;

/// The most characters of a command that are shown.
const COMMAND: usize = 30;

/// Lists containers.
pub fn ps(directories: &Directories, arguments: &PsArguments) -> Result<u8> {
    let mut found = containers(directories).list()?;
    found.retain(|found| arguments.all || found.state.is_alive());
    if arguments.json {
        let all: Vec<_> = found.iter().map(value).collect();
        print_json(&all)?;
    } else if arguments.quiet {
        let ids: String = found
            .iter()
            .map(|found| format!("{}\n", found.record.id))
            .collect();
        print(&ids)?;
    } else {
        let rows: Vec<_> = found.iter().map(row).collect();
        let heads = [
            "ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS",
        ];
        print(&table(heads, &rows))?;
    }
    Ok(0)
}

fn row(found: &Found) -> [String; 7] {
    let record = &found.record;
    [
        record.id.to_string(),
        record.name.clone(),
        record.image.clone(),
        cut(&command(found), COMMAND),
        format!("{} ago", record.created.ago()),
        status(&found.state),
        record.ports.join(", "),
    ]
}

/// The words of the container's command.
fn command(found: &Found) -> String {
    let words = found
        .record
        .plan
        .as_ref()
        .and_then(|plan| plan.pointer("/spec/process/args")?.as_array());
    let words = words.into_iter().flatten().filter_map(|word| word.as_str());
    words.collect::<Vec<_>>().join(" ")
}

fn status(state: &State) -> String {
    match state {
        State::Starting { .. } => "starting".to_owned(),
        State::Running { since, .. } => format!("running for {}", since.ago()),
        State::Exited {
            at,
            status,
            reason: None,
        } => format!("exited ({status}) {} ago", at.ago()),
        State::Exited {
            at,
            status,
            reason: Some(reason),
        } => {
            let first = reason.lines().next().unwrap_or_default();
            format!("exited ({status}) {} ago: {}", at.ago(), first)
        }
        State::Lost => "lost: coracle was killed, or the host restarted".to_owned(),
        State::Damaged { reason, .. } => format!("damaged: {reason}"),
    }
}
