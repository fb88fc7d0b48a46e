// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle stats`.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use super::reach::{ask_within, at_once, containers, find_each};
use crate::EXIT_FAILURE;
use crate::cli::{Directories, StatsArguments};
use crate::container::{Containers, Found, Id, State};
use crate::control::{Answer, Request, Usage};
use crate::log;
use crate::print::{unless_reader_left, write};
use crate::table::{bytes, table};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Has a terminal begin its screen anew.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What a container used when it was looked at.
struct Sample {
    at: Instant,
    usage: Usage,
}

/// Shows what running containers use.
pub fn stats(directories: &Directories, arguments: &StatsArguments) -> Result<u8> {
    let containers = containers(directories);
    let (named, mut status) = find_each(&containers, &arguments.containers);
    // One that ends while it is watched is not told of.
    let mut names = Vec::new();
    for found in named {
        match found.state {
            State::Running { .. } | State::Starting { .. } => names.push(found.record.id),
            _ => {
                let error = anyhow!("container {} is not running", found.record.name);
                log::tell_failure(&error);
                status = EXIT_FAILURE;
            }
        }
    }
    if !arguments.containers.is_empty() && names.is_empty() {
        return Ok(status);
    }
    unless_reader_left(show(&containers, &names, arguments)).map(|()| status)
}

/// Shows those that are named, or all.
fn show(containers: &Containers, named: &[Id], arguments: &StatsArguments) -> Result<()> {
    let mut before = HashMap::new();
    if arguments.no_stream {
        // Shares of processor time are those of a moment.
        samples(&wanted(containers, named)?, &mut before);
        thread::sleep(PERIOD);
    }
    loop {
        let found = wanted(containers, named)?;
        let now = Instant::now();
        let rows = samples(&found, &mut before);
        let mut text = String::new();
        if arguments.json {
            text.extend(rows.iter().map(Row::json));
        } else {
            if !arguments.no_stream && io::stdout().is_terminal() {
                text.push_str(CLEAR);
            }
            let rows: Vec<_> = rows.iter().map(Row::cells).collect();
            text.push_str(&table(HEADS, &rows));
        }
        write(text.as_bytes())?;
        if arguments.no_stream {
            return Ok(());
        }
        if found.is_empty() && !named.is_empty() {
            bail!("none of the containers is running any more");
        }
        thread::sleep(PERIOD.saturating_sub(now.elapsed()));
    }
}

const HEADS: [&str; 8] = [
    "NAME",
    "CPU",
    "MEMORY",
    "OF",
    "PROCESSES",
    "NETWORK IN / OUT",
    "DISK READ / WRITTEN",
    "HOST CPU / MEMORY",
];

struct Row {
    name: String,
    id: Id,
    usage: Usage,
    /// Of one processor, since the last look.
    cpu: Option<f64>,
    host_cpu: Option<f64>,
}

impl Row {
    fn cells(&self) -> [String; 8] {
        let usage = &self.usage;
        let both = |[first, second]: [u64; 2]| format!("{} / {}", bytes(first), bytes(second));
        [
            self.name.clone(),
            percent(self.cpu),
            bytes(usage.memory),
            bytes(usage.memory_limit),
            usage.pids.to_string(),
            both(usage.network),
            both(usage.block),
            format!("{} / {}", percent(self.host_cpu), bytes(usage.host_memory)),
        ]
    }

    fn json(&self) -> String {
        let row = json!({
            "id": self.id,
            "name": self.name,
            "cpu_percent": self.cpu,
            "host_cpu_percent": self.host_cpu,
            "usage": self.usage,
        });
        format!("{row}\n")
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{share:.1} %"))
}

/// The containers that are to be shown and run.
fn wanted(containers: &Containers, named: &[Id]) -> Result<Vec<Found>> {
    let mut found = match named {
        [] => containers.list()?,
        ids => ids
            .iter()
            .filter_map(|id| containers.find(id.as_str()).ok())
            .collect(),
    };
    found.retain(|found| matches!(found.state, State::Running { .. }));
    Ok(found)
}

/// What each uses, beside what it did before.
fn samples(found: &[Found], before: &mut HashMap<Id, Sample>) -> Vec<Row> {
    before.retain(|id, _| found.iter().any(|found| found.record.id == *id));
    let samples = at_once(found, |found| {
        // It may have ended since it was found, and one that hangs keeps nobody from the others' figures.
        match ask_within(PERIOD, found, &Request::Usage, &[]) {
            Ok(Answer::Usage(usage)) => Some(Sample {
                at: Instant::now(),
                usage,
            }),
            _ => None,
        }
    });
    let mut rows = Vec::new();
    for (found, now) in found.iter().zip(samples) {
        let Some(now) = now else {
            continue;
        };
        let usage = now.usage;
        let last = before.get(&found.record.id);
        let share = |figure: fn(&Usage) -> u64| last.map(|last| share(&now, last, figure));
        rows.push(Row {
            name: found.record.name.clone(),
            id: found.record.id.clone(),
            usage,
            cpu: share(|usage| usage.cpu_usec),
            host_cpu: share(|usage| usage.host_cpu_usec),
        });
        before.insert(found.record.id.clone(), now);
    }
    rows
}

/// Processor time used between two looks, in percent of one processor.
#[expect(
    clippy::cast_precision_loss,
    reason = "nobody reads more than a few digits"
)]
fn share(now: &Sample, last: &Sample, figure: fn(&Usage) -> u64) -> f64 {
    let used = figure(&now.usage).saturating_sub(figure(&last.usage));
    let passed = now.at.duration_since(last.at).as_micros().max(1);
    100.0 * used as f64 / passed as f64
}
