// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: its words, defaults and help.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use coracle_oci::volume::Volume;

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

/// Where things are kept on the host.
#[derive(Debug, Args)]
pub struct Directories {
    /// Directory of what outlives a run: unpacked images, and the writable layers of running containers
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/coracle",
        env = "CORACLE_ROOT",
        global = true
    )]
    pub root: PathBuf,
    /// Directory of what is gone with a run: sockets and mount points
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/run/coracle",
        env = "CORACLE_STATE",
        global = true
    )]
    pub state: PathBuf,
    /// Directory of the guest's kernel (`vmlinux`) and initial file system (`initramfs.cpio`)
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/usr/lib/coracle",
        env = "CORACLE_GUEST",
        global = true
    )]
    pub guest: PathBuf,
}

impl Directories {
    /// The same places, whatever directory a process is in: the one that cleans up is in another.
    pub fn absolute(&self) -> Self {
        // It fails only where there is no current directory; then a relative path means nothing anyway.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Self {
            root: absolute(&self.root),
            state: absolute(&self.state),
            guest: absolute(&self.guest),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image's container in a virtual machine of its own
    Run(Box<RunArguments>),
    /// Say what this host has and lacks for running virtual machines
    Check(CheckArguments),
}

/// Run an image's container in a virtual machine of its own.
///
/// The exit status is the container's own, or 128 plus the number of the signal that ended it; 127
/// where its command is not found and 126 where it cannot be executed; 125 where coracle itself
/// failed.
#[derive(Debug, Args)]
#[command(
    override_usage = "coracle run [OPTIONS] IMAGE [COMMAND]...\n       coracle run [OPTIONS] --rootfs DIR [COMMAND]...",
    after_long_help = "Examples:
  coracle run ./busybox:latest echo hello
  coracle run image.tar
  coracle run -v ./data:/data:ro --memory 512 ./debian sha256sum /data/file
  coracle run --rootfs ./tree /bin/sh -c 'id; ls /'"
)]
pub struct RunArguments {
    /// An OCI image layout, a directory or a .tar archive, with `:TAG` if it holds several images
    #[arg(required_unless_present = "rootfs", value_name = "IMAGE")]
    pub first: Option<String>,
    /// Command to run instead of the image's own
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub rest: Vec<String>,
    /// Run on this directory tree instead of an image; the tree itself is never written
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,
    /// Set an environment variable: KEY=VALUE, or KEY to hand on the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run as: a name or a number of the image, optionally with a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Share a file or directory of the host with the container
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<Volume>,
    /// Memory of the virtual machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub memory: u64,
    /// Virtual CPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cpus: u8,
    /// Guest kernel: an uncompressed vmlinux with a PVH entry [default: vmlinux of the guest directory]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial file system of the guest, which holds the agent [default: initramfs.cpio of the guest directory]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// How long the guest may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub boot_timeout: Duration,
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a run starts from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// An image, by its reference.
    Image(&'a str),
    /// A directory tree.
    Rootfs(&'a Path),
}

impl RunArguments {
    /// Tells the image from the command: with a tree of files there is no image to name first.
    pub fn origin_and_command(&self) -> (Origin<'_>, Vec<String>) {
        let first = self.first.as_slice();
        match &self.rootfs {
            Some(rootfs) => (Origin::Rootfs(rootfs), [first, &self.rest].concat()),
            // The parser asks for an image where there is no tree.
            None => (
                Origin::Image(self.first.as_deref().unwrap_or_default()),
                self.rest.clone(),
            ),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(format!("'{text}' is not a whole number of seconds above 0")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use rstest::rstest;

    use super::*;

    fn run_arguments(words: &[&str]) -> RunArguments {
        let words = [&["coracle", "run"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => *arguments,
            Command::Check(_) => unreachable!("the words say run"),
        }
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_after_the_image_are_the_command_even_with_dashes() {
        let arguments = run_arguments(&["-w", "/tmp", "image", "sh", "-c", "-e", "--memory"]);

        let command = ["sh", "-c", "-e", "--memory"].map(String::from);
        assert_eq!(
            arguments.origin_and_command(),
            (Origin::Image("image"), command.to_vec())
        );
        assert_eq!(arguments.workdir.as_deref(), Some("/tmp"));
    }

    #[test]
    fn with_a_rootfs_all_words_are_the_command() {
        let arguments = run_arguments(&["--rootfs", "/tree", "sh", "-c", "true"]);

        let command = ["sh", "-c", "true"].map(String::from);
        assert_eq!(
            arguments.origin_and_command(),
            (Origin::Rootfs(Path::new("/tree")), command.to_vec())
        );
    }

    #[rstest]
    #[case::no_image(&[])]
    #[case::no_cpus(&["--cpus", "0", "image"])]
    #[case::too_many_cpus(&["--cpus", "33", "image"])]
    #[case::no_time(&["--boot-timeout", "0", "image"])]
    #[case::unknown_option(&["--nonsense", "image"])]
    fn bad_words_are_refused(#[case] words: &[&str]) {
        let words = [&["coracle", "run"], words].concat();

        assert!(Cli::try_parse_from(words).is_err());
    }
}
