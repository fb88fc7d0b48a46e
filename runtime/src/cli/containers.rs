// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of what is done with containers that there are.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{whole_number, whole_seconds};

/// List containers.
#[derive(Debug, Args)]
pub struct PsArguments {
    /// Those that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// Print ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what is known as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Run a further command in a running container.
///
/// The exit status is the command's own, or 128 plus the number of the signal that ended it; 127
/// where it is not found and 126 where it cannot be executed; 125 where coracle itself failed.
#[derive(Debug, Args)]
pub struct ExecArguments {
    /// Give the command our standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable: KEY=VALUE, or KEY to hand on the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Directory to start in, which has to be there [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run as: a name or a number of the image, optionally with a group [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The container: its name, its id or the beginning of that. The command: all that comes after it
    // One argument, not two: the first word that is no option ends the options.
    #[arg(
        required = true,
        num_args = 2..,
        trailing_var_arg = true,
        value_names = ["CONTAINER", "COMMAND"]
    )]
    pub words: Vec<String>,
}

impl ExecArguments {
    /// Tells the container from the command.
    pub fn container_and_command(&self) -> (&str, &[String]) {
        // The parser asks for both.
        let container = self.words.first().map_or("", String::as_str);
        (container, self.words.get(1..).unwrap_or_default())
    }
}

/// Show what a container has put out.
#[derive(Debug, Args)]
pub struct LogsArguments {
    /// Go on showing until the container has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
    /// Show no more than the last lines
    #[arg(short = 'n', long, value_name = "LINES", value_parser = whole_number::<usize>)]
    pub tail: Option<usize>,
    /// Show what the processes that run a container in the background had to say themselves, instead
    #[arg(long, conflicts_with_all = ["follow", "timestamps", "tail"])]
    pub runner: bool,
    /// The container: its name, its id or the beginning of that
    pub container: String,
}

/// Ask containers to end, and make them if they do not.
///
/// One that is only starting is given up: nothing of it stays.
#[derive(Debug, Args)]
pub struct StopArguments {
    /// How long they may take before they are killed, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = whole_seconds)]
    pub time: Duration,
    /// The containers: their names, their ids or the beginnings of those
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Send a signal to containers.
///
/// It goes to the first process, which is PID 1: the kernel drops it if that has no handler for it, KILL excepted.
#[derive(Debug, Args)]
pub struct KillArguments {
    /// The signal: a name such as TERM, or a number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = crate::signal_names::parse)]
    pub signal: i32,
    /// The containers: their names, their ids or the beginnings of those
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Remove containers that have ended.
///
/// By the id of one that is gone, what could not be removed of its network is given up.
#[derive(Debug, Args)]
pub struct RmArguments {
    /// Kill those that run or start
    #[arg(short, long)]
    pub force: bool,
    /// The containers: their names, their ids or the beginnings of those
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Show what running containers use.
#[derive(Debug, Args)]
pub struct StatsArguments {
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Print it as JSON, an object a line
    #[arg(long)]
    pub json: bool,
    /// The containers: their names, their ids or the beginnings of those [default: all that run]
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Print all that is known of containers, as JSON.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The containers: their names, their ids or the beginnings of those
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Write the memory and registers of a container's guest to a file that gdb and crash read.
///
/// The guest stands still meanwhile. Ctrl-C gives the dump up: the guest goes on, and no file is left.
///
/// Both read it beside the guest's kernel with its symbols, which has to be of the very same build. The small kernel's is
/// target/kernel/vmlinux.debug, where `make kernel` was run; neither `make install` nor the package takes it along. Debian's
/// is /usr/lib/debug/boot/vmlinux-RELEASE, of the package linux-image-RELEASE-dbg; RELEASE is what `uname -r` says in the
/// container.
///
/// Of Linux 6.1, the crash of Debian 12, 8.0.2, shows no stacks by `bt` and no processes by `ps`: it takes 8.0.4 for that.
/// `list task_struct.tasks -s task_struct.comm -h init_task` lists them; `sys`, `log`, `struct`, `rd`, `dis` and `kmem -i`
/// work. In gdb each processor is a thread; what the kernel maps beside its image and its linear map of all memory, such as
/// most stacks, is not found there.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  coracle dump web web.core
  crash target/kernel/vmlinux.debug web.core
  gdb -ex 'thread apply all bt' target/kernel/vmlinux.debug web.core
  gdb /usr/lib/debug/boot/vmlinux-$(coracle exec web uname -r) web.core")]
pub struct DumpArguments {
    /// The container: its name, its id or the beginning of that
    pub container: String,
    /// The file, which is made
    pub file: PathBuf,
}

/// Attach to the console of a container's guest: what its kernel and its agent say.
///
/// What is kept of what it has said comes first; a kernel that is well, and its agent, say next to nothing. What is typed
/// goes to the guest. Ctrl-] leaves.
#[derive(Debug, Args)]
pub struct ConsoleArguments {
    /// The container: its name, its id or the beginning of that
    pub container: String,
}

/// Copy files and directories out of a container, or into it, whether it runs or has ended.
///
/// A file goes to the destination, or into the directory that is there. A directory becomes the destination, or goes
/// into the directory that is there; if the source ends with `/.`, only what is in it. Links are copied as links;
/// devices, FIFOs and sockets are left out. Permissions, without set-user-ID and set-group-ID, and times are kept.
///
/// What the guest alone has is out of reach: its /proc, /sys and /dev, what is mounted there as tmpfs, and disks. A copy
/// of one of these is refused, and what a tree or an archive has for one is left out, and said so. A program in the
/// container gets there: coracle exec web cat FILE, coracle exec -i web tar -x.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  coracle cp web:/etc/nginx ./nginx
  coracle cp ./page.html web:/srv/
  coracle cp web:/var/log - | tar -t")]
pub struct CpArguments {
    /// Keep owners, too, and all permissions; otherwise the copies are root's, in an archive as well
    #[arg(short, long)]
    pub archive: bool,
    /// What to copy; - for a tar archive from standard input
    #[arg(value_name = "CONTAINER:PATH|PATH|-")]
    pub source: OsString,
    /// Where to; - for a tar archive on standard output
    #[arg(value_name = "CONTAINER:PATH|PATH|-")]
    pub destination: OsString,
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::super::{Cli, Command};
    use super::*;

    fn exec_arguments(words: &[&str]) -> Result<ExecArguments, clap::Error> {
        let words = [&["coracle", "exec"], words].concat();
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Exec(arguments) => arguments,
            _ => unreachable!("the words say exec"),
        })
    }

    #[rstest]
    #[case::known_letter(&["-u", "1000", "id"])]
    #[case::known_option(&["--tty"])]
    #[case::option_of_all_commands(&["--root", "/elsewhere"])]
    #[case::help(&["sh", "--help"])]
    #[case::dashes(&["--", "sh"])]
    fn words_after_the_container_are_the_command_whatever_they_are(#[case] command: &[&str]) {
        let arguments = exec_arguments(&[&["-i", "web"], command].concat()).unwrap();

        assert_eq!(arguments.container_and_command().0, "web");
        assert_eq!(arguments.container_and_command().1, command);
        assert!(arguments.interactive && !arguments.tty && arguments.user.is_none());
    }

    #[rstest]
    #[case::nothing(&[])]
    #[case::no_command(&["web"])]
    #[case::unknown_option(&["--nonsense", "web", "true"])]
    fn bad_words_are_refused(#[case] words: &[&str]) {
        assert!(exec_arguments(words).is_err());
    }
}
