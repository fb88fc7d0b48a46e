// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle`: OCI containers, each in a lightweight virtual machine of its own.
//!
//! One executable with several roles, so that their text pages are shared. What a person types is
//! in [`cli`]; the roles that `coracle` starts for itself are in [`roles`].

mod check;
mod cli;
mod guest_files;
mod log;
mod printable;
mod roles;
mod run;

use std::process::ExitCode;

use clap::Parser;

use printable::printable;
use tracing_subscriber::filter::LevelFilter;

/// Exit status of `coracle` for failures of its own, as opposed to the container's: the number
/// that container engines use for it.
const EXIT_FAILURE: u8 = 125;

fn main() -> ExitCode {
    // A role is picked before the command line is parsed: its start is part of a container's.
    let role = roles::from_arguments();
    // A guest can make its devices warn; why a role ends is told by the run.
    let level = role.map_or(LevelFilter::WARN, |_| LevelFilter::ERROR);
    if let Err(error) = log::start(level) {
        return fail(&error);
    }
    if let Some(role) = role {
        return role.main();
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A stream that cannot be written to has nobody to tell.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_FAILURE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let directories = cli.directories.absolute();
    let outcome = match &cli.command {
        cli::Command::Run(arguments) => run::run(&directories, arguments),
        cli::Command::Check(arguments) => check::check(&directories, arguments),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("coracle: {}", printable(&format!("{error:#}")));
    ExitCode::from(EXIT_FAILURE)
}
