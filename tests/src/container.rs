// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A `coracle run` in the making: each method is an option of the command line, or a condition of the host.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use crate::host::Host;
use crate::running::{Finished, Running};
use crate::terminal::{Terminal, on_terminal};

/// A run that has not been started.
#[must_use = "it does not run until it is started"]
pub struct Container<'a> {
    host: &'a Host,
    options: Vec<OsString>,
    origin: Option<OsString>,
    command: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    under: Vec<OsString>,
    input: Input,
    kept: bool,
    networks: Vec<String>,
    terminal: Option<OwnedFd>,
}

/// What there is on standard input.
enum Input {
    Nothing,
    Pipe,
    Bytes(Vec<u8>),
}

impl<'a> Container<'a> {
    pub(crate) fn of_image(host: &'a Host, image: impl Display) -> Self {
        Self {
            origin: Some(image.to_string().into()),
            ..Self::new(host)
        }
    }

    pub(crate) fn of_rootfs(host: &'a Host, tree: &Path) -> Self {
        Self::new(host).option("--rootfs", tree)
    }

    fn new(host: &'a Host) -> Self {
        Self {
            host,
            options: Vec::new(),
            origin: None,
            command: Vec::new(),
            variables: Vec::new(),
            under: Vec::new(),
            input: Input::Nothing,
            kept: false,
            networks: Vec::new(),
            terminal: None,
        }
    }

    /// Attaches it to a network; without, it has none.
    pub fn network(mut self, network: &str) -> Self {
        self.networks.push(network.to_owned());
        self
    }

    /// Gives it a terminal, which is at the other end of this one.
    pub fn terminal(mut self, terminal: &Terminal) -> Self {
        self.terminal = Some(terminal.far_end());
        self.flag("-it")
    }

    /// In the background, kept after its end.
    pub fn detached(self) -> Self {
        self.flag("--detach").kept()
    }

    /// Any option that takes no value.
    pub fn flag(mut self, name: &str) -> Self {
        self.options.push(name.into());
        self
    }

    /// Keeps the container after its end, unless the test removes it.
    pub fn kept(mut self) -> Self {
        self.kept = true;
        self
    }

    /// Any option that takes a value.
    pub fn option(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.options.extend([name.into(), value.as_ref().into()]);
        self
    }

    /// `KEY=VALUE`, or `KEY` to hand on coracle's own.
    pub fn env(self, variable: &str) -> Self {
        self.option("--env", variable)
    }

    /// The working directory.
    pub fn workdir(self, directory: &str) -> Self {
        self.option("--workdir", directory)
    }

    /// `USER`, or `USER:GROUP`.
    pub fn user(self, user: &str) -> Self {
        self.option("--user", user)
    }

    /// Shares `source` of the host as `destination`, which may end in `:ro`.
    pub fn volume(self, source: &Path, destination: &str) -> Self {
        self.option("--volume", format!("{}:{destination}", source.display()))
    }

    /// Memory, in MiB.
    pub fn memory(self, mib: u64) -> Self {
        self.option("--memory", mib.to_string())
    }

    /// Virtual CPUs.
    pub fn cpus(self, cpus: u8) -> Self {
        self.option("--cpus", cpus.to_string())
    }

    /// Another kernel for the guest.
    pub fn kernel(self, kernel: &Path) -> Self {
        self.option("--kernel", kernel)
    }

    /// Another initial file system for the guest.
    pub fn initrd(self, initrd: &Path) -> Self {
        self.option("--initrd", initrd)
    }

    /// How long the guest may take to answer, in seconds.
    pub fn boot_timeout(self, seconds: u32) -> Self {
        self.option("--boot-timeout", seconds.to_string())
    }

    /// The words of the container's command. Without any, it is the image's own.
    pub fn command<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.command = words.map(OsString::from).into();
        self
    }

    /// A script for the container's shell.
    pub fn shell(self, script: &str) -> Self {
        self.command(["sh", "-c", script])
    }

    /// Sets a variable of coracle itself.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().into()));
        self
    }

    /// A script that has programs of the host, which is a Debian: `tool NAME …` runs one, by the host's own libraries.
    pub fn shell_with_tools(self, script: &str) -> Self {
        let tool = "tool() { program=$1; shift; libraries=/host/lib/x86_64-linux-gnu;
            $libraries/ld-linux-x86-64.so.2 --library-path $libraries /host/bin/$program \"$@\"; }";
        self.volume(Path::new("/usr"), "/host:ro")
            .shell(&format!("{tool}\n{script}"))
    }

    /// Has coracle started by a program whose words end with its own, as `prlimit` or `unshare`.
    pub fn under<'w>(mut self, program: impl IntoIterator<Item = &'w str>) -> Self {
        self.under = program.into_iter().map(OsString::from).collect();
        self
    }

    /// Keeps standard input open, for [`Running::stdin`].
    pub fn interactive(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// Writes `bytes` to standard input while the container runs, then closes it.
    pub fn input(mut self, bytes: Vec<u8>) -> Self {
        self.input = Input::Bytes(bytes);
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let remove = (!self.kept).then_some("--rm");
        let interactive = (!matches!(self.input, Input::Nothing)).then_some("-i");
        let networks = match self.networks.as_slice() {
            [] => vec!["--network=none".to_owned()],
            named => named
                .iter()
                .map(|name| format!("--network={name}"))
                .collect(),
        };
        let words = [Some("run"), remove, interactive]
            .into_iter()
            .flatten()
            .map(OsString::from)
            .chain(networks.into_iter().map(OsString::from))
            .chain(self.options)
            .chain(self.origin)
            .chain(self.command);
        let mut command = self.host.coracle_under(self.under, words);
        command.envs(self.variables);
        if !matches!(self.input, Input::Nothing) {
            command.stdin(Stdio::piped());
        }
        if let Some(terminal) = &self.terminal {
            on_terminal(&mut command, terminal);
        }
        let mut running = self.host.start(command);
        if let Input::Bytes(bytes) = self.input {
            running.write(bytes);
        }
        running
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Runs it to its end, and fails unless that is with `status`.
    #[track_caller]
    pub fn expect(self, status: i32) -> Finished {
        self.finish().expect(status)
    }
}
