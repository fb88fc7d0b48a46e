// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle`: OCI containers, each in a lightweight virtual machine of its own.
//!
//! This library is there for the executable, and for what writes its man pages and shell completions; nothing of it is
//! promised to others: the crates below it are.
//!
//! One executable with several roles, so that their text pages are shared. What a person types is
//! in `cli`; the roles that `coracle` starts for itself are in `roles`.

// Macros that end the process where nobody reads are not for those who run containers: `print` and `log::tell` are.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod check;
mod cli;
mod command;
mod config;
mod container;
mod control;
mod descriptors;
mod guest_files;
mod image;
mod lifeline;
mod log;
mod output;
mod print;
mod printable;
mod roles;
mod run;
mod signal_names;
mod table;
mod terminal;
#[cfg(test)]
mod testing;
mod until;

use std::process::ExitCode;

use clap::CommandFactory;
use tracing_subscriber::filter::LevelFilter;

/// Exit status of `coracle` for failures of its own, as opposed to the container's: the number
/// that container engines use for it.
const EXIT_FAILURE: u8 = 125;

/// Exit status of a container, or a command in it, whose machine was ended under it: that of a kill.
const EXIT_CUT_OFF: u8 = 137;

/// The file of configuration that is installed: every key with its default and its unit, commented out.
pub const CONFIG: &str = include_str!("config/config.toml");

/// The command line's definition.
pub fn command_line() -> clap::Command {
    cli::Cli::command()
}

/// The executable: a role, or what the command line says.
pub fn main() -> ExitCode {
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
    let cli = match cli::Cli::read(&std::env::args_os().collect::<Vec<_>>()) {
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
        cli::Command::Run(arguments) => directories
            .read_config()
            .and_then(|config| run::run(&directories, &config, arguments)),
        cli::Command::Ps(arguments) => command::ps(&directories, arguments),
        cli::Command::Exec(arguments) => command::exec(&directories, arguments),
        cli::Command::Logs(arguments) => command::logs(&directories, arguments),
        cli::Command::Stop(arguments) => command::stop(&directories, arguments),
        cli::Command::Kill(arguments) => command::kill(&directories, arguments),
        cli::Command::Rm(arguments) => directories
            .read_config()
            .and_then(|config| command::rm(&directories, &config, arguments)),
        cli::Command::Stats(arguments) => command::stats(&directories, arguments),
        cli::Command::Cp(arguments) => command::cp(&directories, arguments),
        cli::Command::Inspect(arguments) => command::inspect(&directories, arguments),
        cli::Command::Pull(arguments) => directories
            .read_config()
            .and_then(|config| image::pull(&directories, &config, arguments)),
        cli::Command::Images(arguments) => image::images(&directories, arguments),
        cli::Command::Rmi(arguments) => image::rmi(&directories, arguments),
        cli::Command::Load(arguments) => image::load(&directories, arguments),
        cli::Command::Tag(arguments) => image::tag(&directories, arguments),
        cli::Command::Console(arguments) => command::console(&directories, arguments),
        cli::Command::Dump(arguments) => command::dump(&directories, arguments),
        cli::Command::Check(arguments) => check::check(&directories, arguments),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    log::tell_failure(error);
    ExitCode::from(EXIT_FAILURE)
}
