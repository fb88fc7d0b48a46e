// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the user wants, from the words of the command line.

use std::path::PathBuf;

use anyhow::{Context, Error, Result};
use coracle_oci::spec::{Overrides, TerminalSize};

use crate::cli::{Origin, RunArguments};
use crate::container::{Id, Record, RunDirectory, Status, Time};
use crate::{signal_names, terminal};

/// What is known of a container when it is only an intention.
pub fn record(directory: &RunDirectory, arguments: &RunArguments) -> Record {
    let id = directory.id().clone();
    Record {
        name: arguments
            .name
            .as_ref()
            .map_or_else(|| id.to_string(), |name| name.as_str().to_owned()),
        id,
        image: match arguments.origin_and_command().0 {
            Origin::Image(name) => name.to_owned(),
            Origin::Rootfs(path) => path.display().to_string(),
        },
        tree: PathBuf::new(),
        created: Time::now(),
        status: Status::Starting,
        remove: arguments.remove,
        stop_signal: libc::SIGTERM,
        plan: None,
        networks: Vec::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
    }
}

pub fn overrides(arguments: &RunArguments, id: &Id) -> Overrides {
    let (_, command) = arguments.origin_and_command();
    Overrides {
        command,
        env: with_values(&arguments.env),
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        hostname: Some(arguments.hostname.clone().unwrap_or_else(|| id.to_string())),
        terminal: arguments.tty.then(|| terminal_size(arguments.detach)),
    }
}

/// The size of the container's terminal: ours, if there is somebody at it.
fn terminal_size(detached: bool) -> TerminalSize {
    let size = (!detached).then(terminal::our_size).flatten();
    TerminalSize {
        columns: size.map_or(0, |size| size.columns),
        rows: size.map_or(0, |size| size.rows),
    }
}

/// Each `KEY=VALUE`, with the caller's value where only a key is given; nothing where the caller has none.
pub fn with_values(variables: &[String]) -> Vec<String> {
    let with_value = |variable: &String| {
        if variable.contains('=') {
            return Some(variable.clone());
        }
        let value = std::env::var(variable).ok()?;
        Some(format!("{variable}={value}"))
    };
    variables.iter().filter_map(with_value).collect()
}

/// The signal by which an image wants to be stopped.
pub fn stop_signal(named: &str) -> Result<i32> {
    if named.is_empty() {
        return Ok(libc::SIGTERM);
    }
    signal_names::parse(named)
        .map_err(Error::msg)
        .context("the image names a signal to stop it that cannot be sent")
}
