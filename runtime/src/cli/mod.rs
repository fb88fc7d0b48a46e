// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: its words, defaults and help.

mod containers;
mod images;
mod network;
mod run;
mod vhost_user_net;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use coracle_network::NetworkConfig;

use crate::config::Config;
use crate::container::Places;

pub use containers::{
    ConsoleArguments, CpArguments, DumpArguments, ExecArguments, InspectArguments, KillArguments,
    LogsArguments, PsArguments, RmArguments, StatsArguments, StopArguments,
};
pub use images::{
    ImagesArguments, LoadArguments, Login, Pull, PullArguments, RmiArguments, TagArguments,
};
pub use network::NetworkArguments;
pub use run::{Origin, RunArguments};
pub use vhost_user_net::VhostUserNet;

/// Runs OCI containers, each in a lightweight virtual machine of its own.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Environment:\n  CORACLE_LOG  What is told on standard error: off, error, warn, info, debug or trace. Set, it holds for\n               the virtual machine's processes, too"
)]
pub struct Cli {
    #[command(flatten)]
    pub directories: Directories,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the words of a command line, the program's name first.
    ///
    /// # Errors
    ///
    /// What the parser has to say instead of it, whether that is wrong or was asked for.
    pub fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        Self::try_parse_from(words).map_err(|error| match error.use_stderr() {
            true => explained(words).unwrap_or(error),
            false => error,
        })
    }
}

/// What is wrong with `words`. The parser's usage lines show an option that the environment stands for as one that is
/// needed, and its tip for an option that there is none of has that taken for an image: neither is told.
fn explained(words: &[OsString]) -> Option<clap::Error> {
    let mut command = Cli::command();
    command.build();
    let command = command.mut_subcommands(|subcommand| {
        let usage = subcommand.clone().render_usage().to_string();
        subcommand.override_usage(usage.trim_start_matches("Usage:").trim_start().to_owned())
    });
    let mut error = command.try_get_matches_from(words).err()?;
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
    }
    Some(error)
}

/// Where things are kept on the host.
#[derive(Debug, Args)]
pub struct Directories {
    /// Directory of what outlives a run: images and containers
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/coracle",
        env = "CORACLE_ROOT",
        help_heading = PLACES,
        global = true
    )]
    pub root: PathBuf,
    /// Directory of what is gone with a run: sockets and mount points
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/run/coracle",
        env = "CORACLE_STATE",
        help_heading = PLACES,
        global = true
    )]
    pub state: PathBuf,
    /// Directory of the guest's kernel (`vmlinux`) and initial file system (`initramfs.cpio`); those of a small kernel,
    /// in `small` there, are taken first
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/usr/lib/coracle",
        env = "CORACLE_GUEST",
        help_heading = PLACES,
        global = true
    )]
    pub guest: PathBuf,
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = DEFAULT_CONFIG,
        env = "CORACLE_CONFIG",
        help_heading = PLACES,
        global = true
    )]
    pub config: PathBuf,
}

/// What the help has these options under, apart from a command's own.
const PLACES: &str = "Places on the host";
/// Where the configuration file is; it need not be there.
const DEFAULT_CONFIG: &str = "/etc/coracle/config.toml";

impl Directories {
    /// How this host is to do things.
    pub fn read_config(&self) -> Result<Config> {
        let named = self.config != Path::new(DEFAULT_CONFIG);
        Config::read(&self.config, named, &self.root)
    }

    /// Where the things of containers are, on a host whose networks are made by default.
    pub fn places(&self) -> Places {
        Places {
            containers: self.root.join("containers"),
            state: self.state.clone(),
            store: self.root.clone(),
            network: NetworkConfig {
                state: self.root.join("network"),
                ..NetworkConfig::default()
            },
        }
    }

    /// The same places, whatever directory a process is in: the one that cleans up is in another.
    pub fn absolute(&self) -> Self {
        // It fails only where there is no current directory; then a relative path means nothing anyway.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Self {
            root: absolute(&self.root),
            state: absolute(&self.state),
            guest: absolute(&self.guest),
            config: absolute(&self.config),
        }
    }
}

/// What is to be done. The help of each is its arguments': a line here would stand for all of it.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<RunArguments>),
    Ps(PsArguments),
    Exec(ExecArguments),
    Logs(LogsArguments),
    Stop(StopArguments),
    Kill(KillArguments),
    Rm(RmArguments),
    Stats(StatsArguments),
    Cp(CpArguments),
    Inspect(InspectArguments),
    Pull(PullArguments),
    Images(ImagesArguments),
    Rmi(RmiArguments),
    Load(LoadArguments),
    Tag(TagArguments),
    Console(ConsoleArguments),
    Dump(DumpArguments),
    Check(CheckArguments),
}

/// Say what this host has and lacks for running virtual machines.
///
/// The exit status is 0 only if `coracle run` can work here, and 1 if something that it needs is lacking.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match whole_seconds(text) {
        Ok(Duration::ZERO) | Err(_) => {
            Err(format!("'{text}' is not a whole number of seconds above 0"))
        }
        time => time,
    }
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<u32>()
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(|_| format!("'{text}' is not a whole number of seconds"))
}

fn whole_number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| "it is not a whole number, or too large a one".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn complaint(words: &[&str]) -> String {
        let words: Vec<_> = ["coracle"]
            .iter()
            .chain(words)
            .map(OsString::from)
            .collect();
        Cli::read(&words).unwrap_err().to_string()
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_a_command_is_whole() {
        let mut cli = Cli::command();
        let run = cli.find_subcommand_mut("run").unwrap();

        let help = run.render_long_help().to_string();

        assert!(help.contains("The exit status is the container's own"));
    }

    #[rstest]
    #[case::stop(&["--guest", "/g", "stop"], "coracle stop [OPTIONS] <CONTAINER>...")]
    #[case::exec(&["exec", "--root", "/r"], "coracle exec [OPTIONS] <CONTAINER> <COMMAND>...")]
    #[case::run(&["run", "--state", "/s"], "coracle run [OPTIONS] IMAGE [COMMAND]...\n       coracle run")]
    fn usage_is_the_same_whatever_was_given(#[case] words: &[&str], #[case] usage: &str) {
        let complaint = complaint(words);

        assert!(
            complaint.contains(&format!("Usage: {usage}")),
            "{complaint}"
        );
    }

    #[test]
    fn nobody_is_told_to_name_an_image_like_an_option() {
        let strange = complaint(&["run", "--read-only", "busybox"]);
        let near = complaint(&["run", "--memroy", "512", "busybox"]);

        assert!(
            strange.contains("'--read-only'") && !strange.contains("tip"),
            "{strange}"
        );
        assert!(near.contains("--memory"), "{near}");
    }

    #[test]
    fn time_may_be_nought_only_where_that_means_something() {
        assert_eq!(whole_seconds("0"), Ok(Duration::ZERO));
        assert!(seconds("0").is_err());
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        assert!(whole_seconds("soon").is_err());
    }
}
