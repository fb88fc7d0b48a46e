// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of `coracle run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use coracle_oci::disk::Disk;
use coracle_oci::volume::Volume;

use super::{NetworkArguments, Pull, VhostUserNet, seconds};
use crate::container::Name;

/// Run an image's container in a virtual machine of its own.
///
/// The exit status is the container's own, or 128 plus the number of the signal that ended it; 127
/// where its command is not found and 126 where it cannot be executed; 125 where coracle itself
/// failed.
///
/// Once its command has run, a container stays after its end, for its log, its files and what it
/// was, until it is removed by `coracle rm`, or at once with --rm.
///
/// Signals go to the container, those excepted that coracle was started to ignore (nohup). Its first process is PID 1:
/// the kernel drops those that it has no handler for, such as Ctrl-C of `sleep`, and `coracle stop` from another
/// terminal ends it. While the container starts they end the run.
///
/// A guest that does not start is given up after --boot-timeout. Nothing watches for one that hangs later: the third Ctrl-C,
/// `coracle stop` or `coracle kill` ends its machine.
#[derive(Debug, Args)]
#[command(
    override_usage = "coracle run [OPTIONS] IMAGE [COMMAND]...\n       coracle run [OPTIONS] --rootfs DIR [COMMAND]...",
    after_long_help = "Examples:
  coracle run --rm ./busybox:latest echo hello
  coracle run --rm -it debian:12
  coracle run -d --name web -p 8080:80 nginx
  coracle run --rm -v ./data:/data:ro --memory 512 ./debian sha256sum /data/file
  coracle run --rm --rootfs ./tree /bin/sh -c 'id; ls /'"
)]
pub struct RunArguments {
    /// The image, and a command to run instead of its own: all that comes after the image. An image is called by its
    /// name in the store or a registry; or it is an OCI image layout or docker archive, a directory or a .tar file, whose
    /// path begins with `/` or `.`, with `:TAG` if it holds several images. Of one for several platforms, that for
    /// linux/amd64 is taken, and of its variants the one that asks least of a processor
    // One argument, not two: the first word that is no option ends the options.
    #[arg(
        required_unless_present = "rootfs",
        trailing_var_arg = true,
        value_names = ["IMAGE", "COMMAND"]
    )]
    pub words: Vec<String>,
    /// When to get the image from its registry; for images by name
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        conflicts_with = "rootfs"
    )]
    pub pull: Pull,
    /// Run on this directory tree instead of an image; the tree itself is never written
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    /// Give the container our standard input; in the background, one that stays open and on which nothing comes
    #[arg(short, long, help_heading = "Life")]
    pub interactive: bool,
    /// Give the container a terminal: ours with -i, in the background one that nobody is at
    #[arg(short, long, help_heading = "Life")]
    pub tty: bool,
    /// Run in the background: print the container's id once it runs, and let `coracle logs` show what it puts out
    #[arg(short, long, help_heading = "Life")]
    pub detach: bool,
    /// What to call the container
    #[arg(long, value_name = "NAME", help_heading = "Life")]
    pub name: Option<Name>,
    /// Remove the container when it has ended; what it writes need not survive a crash of the host, and is not synced
    #[arg(long = "rm", help_heading = "Life")]
    pub remove: bool,

    /// Set an environment variable: KEY=VALUE, or KEY to hand on the caller's
    #[arg(
        short,
        long,
        value_name = "KEY[=VALUE]",
        help_heading = "Inside the container"
    )]
    pub env: Vec<String>,
    /// Working directory inside the container, made if there is none
    #[arg(short, long, value_name = "DIR", help_heading = "Inside the container")]
    pub workdir: Option<String>,
    /// User to run as: a name or a number of the image, optionally with a group
    #[arg(
        short,
        long,
        value_name = "USER[:GROUP]",
        help_heading = "Inside the container"
    )]
    pub user: Option<String>,
    /// Host name of the container [default: its id]
    #[arg(long, value_name = "NAME", help_heading = "Inside the container")]
    pub hostname: Option<String>,
    /// Share a file or directory of the host with the container, to be written unless `:ro` says otherwise
    #[arg(
        short,
        long,
        value_name = "SRC:DST[:ro|:rw]",
        help_heading = "Inside the container"
    )]
    pub volume: Vec<Volume>,

    /// Give the container a raw disk image or a block device that the host does not use: its file system at DST, or,
    /// below /dev, the device itself
    #[arg(
        long,
        value_name = "FILE:DST[:ro][:fs=TYPE]",
        help_heading = "Inside the container"
    )]
    pub disk: Vec<Disk>,
    /// The same of a disk that another process serves over vhost-user at SOCKET, such as qemu-storage-daemon; ro has the
    /// container not write to it
    #[arg(
        long,
        value_name = "SOCKET:DST[:ro][:fs=TYPE]",
        help_heading = "Inside the container"
    )]
    pub vhost_user_blk: Vec<Disk>,

    #[command(flatten)]
    pub network: NetworkArguments,

    /// Memory of the virtual machine, in MiB, 96 at least; or in GiB, as 2g [default: 256, unless the configuration says
    /// otherwise]
    #[arg(long, value_name = "MIB", value_parser = mebibytes, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Virtual CPUs, 1 to 32 [default: 1, unless the configuration says otherwise]
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "Machine")]
    pub cpus: Option<u8>,
    /// Guest kernel: a bzImage, or an uncompressed vmlinux with a PVH entry. It has the modules of its initial file
    /// system alone [default: vmlinux of the guest directory, or the small kernel there, if there is one and no --initrd]
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub kernel: Option<PathBuf>,
    /// Initial file system of the guest, which holds the agent: a cpio archive, plain or compressed as its kernel can
    /// unpack (the small kernel: gzip and zstd; Debian's: also xz, lzma, bzip2, lz4 and lzo) [default: initramfs.cpio of the
    /// guest directory, or with the small kernel: its own]
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub initrd: Option<PathBuf>,
    /// How long the guest may take to start, in seconds; with --gdb, as long as it likes [default: 60, unless the configuration says otherwise]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Machine")]
    pub boot_timeout: Option<Duration>,
    /// Have gdb find the machine at a Unix socket that is made here, for this user alone, and removed with the run (gdb:
    /// `target remote SOCKET`)
    #[arg(long, value_name = "SOCKET", help_heading = "Machine")]
    pub gdb: Option<PathBuf>,
    /// Start the guest only once gdb is there
    #[arg(long, requires = "gdb", help_heading = "Machine")]
    pub gdb_wait: bool,
    /// An interface, after those of --network, whose device another process serves over vhost-user at SOCKET, such as a
    /// switch in user space. It is up, and has the addresses that are given here: one of IPv4 and one of IPv6
    #[arg(
        long,
        value_name = "SOCKET[,ip=ADDRESS/LENGTH][,gateway=ADDRESS][,mac=MAC]",
        help_heading = "Network"
    )]
    pub vhost_user_net: Vec<VhostUserNet>,
}

/// What a run starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// An image, by its reference.
    Image(&'a str),
    /// A directory tree.
    Rootfs(&'a Path),
}

impl RunArguments {
    /// Tells the image from the command: with a tree of files there is no image to name first.
    pub fn origin_and_command(&self) -> (Origin<'_>, Vec<String>) {
        match (&self.rootfs, self.words.split_first()) {
            (Some(rootfs), _) => (Origin::Rootfs(rootfs), self.words.clone()),
            (None, Some((image, command))) => (Origin::Image(image), command.to_vec()),
            // The parser asks for an image where there is no tree.
            (None, None) => (Origin::Image(""), Vec::new()),
        }
    }

    /// Whether what the container puts out is logged: not if it goes to the user and the container goes with its end.
    pub fn is_logged(&self) -> bool {
        self.detach || !self.remove
    }
}

/// A size in MiB, whose unit may be written out, or be GiB.
fn mebibytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['g', 'G']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['m', 'M']).unwrap_or(text), 1),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "it is not a size in MiB, as 512 or 512m, or in GiB, as 2g".to_owned())
}

fn cpus(text: &str) -> Result<u8, String> {
    let number = text.parse().ok();
    number
        .filter(|number| (1..=32).contains(number))
        .ok_or_else(|| "it is not a whole number from 1 to 32".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::super::{Cli, Command};
    use super::*;

    fn run_arguments(words: &[&str]) -> RunArguments {
        let words = [&["coracle", "run"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => *arguments,
            _ => unreachable!("the words say run"),
        }
    }

    #[rstest]
    #[case::letters(&["sh", "-c", "-e", "--memory"])]
    #[case::known_option(&["--memory", "512", "echo"])]
    #[case::known_letter(&["-d"])]
    #[case::option_that_was_there_before(&["-w", "/"])]
    #[case::option_of_all_commands(&["--root", "/elsewhere"])]
    #[case::help(&["--help"])]
    #[case::version(&["-V"])]
    #[case::dashes(&["--", "sh"])]
    fn words_after_the_image_are_the_command_whatever_they_are(#[case] command: &[&str]) {
        let arguments = run_arguments(&[&["-w", "/tmp", "image"], command].concat());

        let command: Vec<_> = command.iter().copied().map(String::from).collect();
        assert_eq!(
            arguments.origin_and_command(),
            (Origin::Image("image"), command)
        );
        assert_eq!(arguments.workdir.as_deref(), Some("/tmp"));
        assert!(!arguments.detach && arguments.memory.is_none());
    }

    #[test]
    fn with_a_rootfs_all_words_are_the_command() {
        let arguments = run_arguments(&["--rootfs", "/tree", "sh", "-c", "true", "-d"]);

        let command = ["sh", "-c", "true", "-d"].map(String::from);
        assert_eq!(
            arguments.origin_and_command(),
            (Origin::Rootfs(Path::new("/tree")), command.to_vec())
        );
        assert!(!arguments.detach);
    }

    #[test]
    fn with_a_rootfs_there_need_be_no_word() {
        let arguments = run_arguments(&["--rootfs", "/tree"]);

        let origin = Origin::Rootfs(Path::new("/tree"));
        assert_eq!(arguments.origin_and_command(), (origin, Vec::new()));
    }

    #[test]
    fn letters_of_options_go_together() {
        let arguments = run_arguments(&["-it", "image"]);

        assert!(arguments.interactive && arguments.tty && !arguments.detach);
    }

    #[rstest]
    #[case::plain("512", 512)]
    #[case::unit("512m", 512)]
    #[case::large_letter("512M", 512)]
    #[case::larger_unit("2g", 2048)]
    fn memory_is_in_mebibytes(#[case] text: &str, #[case] expected: u64) {
        assert_eq!(
            run_arguments(&["--memory", text, "image"]).memory,
            Some(expected)
        );
    }

    #[rstest]
    #[case::word("--memory", "much", "a size in MiB, as 512 or 512m, or in GiB, as 2g")]
    #[case::bytes("--memory", "268435456b", "a size in MiB")]
    #[case::less_than_nothing("--memory", "-5", "a size in MiB")]
    #[case::fraction("--memory", "1.5g", "a size in MiB")]
    #[case::too_large("--memory", "18446744073709551615g", "a size in MiB")]
    #[case::part_of_a_cpu("--cpus", "1.5", "a whole number from 1 to 32")]
    #[case::no_cpu("--cpus", "0", "a whole number from 1 to 32")]
    #[case::part_of_a_second("--boot-timeout", "1.5", "a whole number of seconds above 0")]
    fn what_is_expected_is_said(#[case] option: &str, #[case] value: &str, #[case] says: &str) {
        let error = Cli::try_parse_from(["coracle", "run", &format!("{option}={value}"), "image"]);

        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("is not {says}")), "{error}");
    }

    #[rstest]
    #[case::no_image(&[])]
    #[case::no_cpus(&["--cpus", "0", "image"])]
    #[case::too_many_cpus(&["--cpus", "33", "image"])]
    #[case::no_time(&["--boot-timeout", "0", "image"])]
    #[case::bad_name(&["--name", "a/b", "image"])]
    #[case::pull_of_no_image(&["--pull", "always", "--rootfs", "/tree", "sh"])]
    #[case::unknown_option(&["--nonsense", "image"])]
    fn bad_words_are_refused(#[case] words: &[&str]) {
        let words = [&["coracle", "run"], words].concat();

        assert!(Cli::try_parse_from(words).is_err());
    }
}
