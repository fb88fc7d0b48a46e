// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container's processes, from their birth until they execute what the spec says.
//!
//! The agent has many threads, and a child of such a process may do next to nothing safely until it executes a program.
//! So it executes the agent once more, in a [`Role`]: a process with one thread that may allocate, lock and fail
//! as it likes. As the first process of a container it takes the spec from the agent over a socket, makes the container
//! around itself, waits at its start gate and becomes the container's command. For a further process it
//! enters the container first.
//!
//! It meets the image's files with the guest's full powers, and the image may be hostile: every path of the spec
//! is resolved inside the root file system, mounts are made on descriptors instead of paths, and `/proc` is the
//! agent's, opened before the image could put something in its place.

use std::ffi::CStr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::thread::UnshareFlags;

use crate::channel::{Channel, Ready};
use crate::network;
use crate::spec::{NamespaceKind, Spec};
use agent_files::AgentFiles;
use command::Command;
use terminal::Terminal;

mod agent_files;
pub mod command;
mod devices;
mod further;
mod hidden;
mod identity;
pub mod in_root;
pub(crate) mod mounts;
mod rootfs;
mod terminal;

/// The descriptor on which the agent is to be reached; standard streams are below it.
pub const CHANNEL_FD: i32 = 3;

/// The PID descriptor of the first process of the container that is to be entered; nothing is above.
pub const CONTAINER_FD: i32 = CHANNEL_FD + 1;

/// What this program is to a container, by its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its first process.
    First,
    /// The maker of a further process.
    Further,
}

impl Role {
    /// The role that an argument names.
    #[must_use]
    pub fn of(argument: Option<&str>) -> Option<Self> {
        [Self::First, Self::Further].into_iter().find(|role| {
            argument.is_some_and(|argument| role.argument().to_bytes() == argument.as_bytes())
        })
    }

    /// The argument that names it.
    #[must_use]
    pub fn argument(self) -> &'static CStr {
        match self {
            Self::First => c"init",
            Self::Further => c"exec",
        }
    }
}

/// Makes the process that the agent asks for and becomes its command. Returns if that fails.
#[must_use]
pub fn main(role: Role) -> ExitCode {
    // SAFETY: the agent has put both there and nothing else in this process knows the descriptors.
    let descriptors = unsafe {
        [
            OwnedFd::from_raw_fd(CHANNEL_FD),
            OwnedFd::from_raw_fd(CONTAINER_FD),
        ]
    };
    if descriptors
        .iter()
        .any(|descriptor| rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC).is_err())
    {
        eprintln!("coracle-agent: this role is for the agent's own use");
        // What is not there cannot be closed.
        std::process::exit(1);
    }
    let [channel, container] = descriptors;
    let mut channel = Channel::new(UnixStream::from(channel));
    let result = match role {
        Role::First => {
            drop(container);
            run(&mut channel)
        }
        Role::Further => further::run(&mut channel, container),
    };
    let Err(error) = result else {
        // The agent has gone or thought better of it, or the process has been made.
        return ExitCode::FAILURE;
    };
    let status = error.kind.exit_status().unwrap_or(1);
    // If the agent has gone, nobody is left to be told.
    let _ = channel.send_failure(&error);
    ExitCode::from(status)
}

/// Goes all the way; `Ok` only if the gate never opens.
fn run(channel: &mut Channel) -> Result<(), AgentError> {
    let (bundle, spec, disks) = channel
        .receive_container()
        .map_err(|error| failed("cannot receive the container from the agent", error))?;
    let spec = Spec::parse(&spec)?;
    let (command, terminal) = prepare(Path::new(&bundle), &spec, disks)?;
    let ready = Ready {
        process: None,
        terminal: terminal.as_ref().map(AsFd::as_fd),
    };
    channel
        .send_ready(&ready)
        .map_err(|error| failed("cannot reach the agent", error))?;
    // Held here as well, it would outlive the agent's.
    drop(terminal);
    wait_and_execute(channel, &command)
}

/// Waits at the start gate and becomes the command; `Ok` only if the gate never opens.
fn wait_and_execute(channel: &mut Channel, command: &Command) -> Result<(), AgentError> {
    let open = channel
        .wait_at_gate()
        .map_err(|error| failed("cannot reach the agent", error))?;
    if open {
        return Err(command.execute());
    }
    Ok(())
}

/// Makes the container around this process. Gives its command, and the host's side of its terminal.
fn prepare(
    bundle: &Path,
    spec: &Spec,
    disks: Vec<OwnedFd>,
) -> Result<(Command, Option<OwnedFd>), AgentError> {
    identity::detach()?;
    identity::make_session()?;
    rustix::process::umask(Mode::empty());
    let agent = AgentFiles::open()?;

    enter_namespaces(spec)?;
    let root = rootfs::attach(bundle, &spec.root)?;
    mounts::attach_all(&root, bundle, &spec.mounts, disks)?;
    devices::make(&root, &spec.linux.devices)?;
    hidden::make_readonly(&root, &spec.linux.readonly_paths)?;
    hidden::mask(&root, &agent, &spec.linux.masked_paths)?;
    agent.set_kernel_parameters(&spec.linux.sysctl)?;
    agent.set_oom_score(spec.process.oom_score_adj)?;
    let process = &spec.process;
    let terminal = Terminal::of(process, &root, &agent)?;
    if let Some(terminal) = &terminal {
        terminal.show_as_console(&root)?;
    }
    if spec.root.readonly {
        rootfs::make_readonly(&root)?;
    }
    agent.protect_null_streams()?;
    let terminal = terminal.map(Terminal::become_streams).transpose()?;
    if terminal.is_some() {
        terminal::control()?;
    }
    // Both are let go of here: what is still open could be named as a working directory.
    drop(agent);
    rootfs::enter(root)?;

    identity::set_limits(&process.rlimits)?;
    identity::become_user(process)?;
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    let command = Command::find(&process.args, &process.env)?;
    Ok((command, terminal))
}

/// Finishes the namespaces in which this process was born.
fn enter_namespaces(spec: &Spec) -> Result<(), AgentError> {
    if spec.has_namespace(NamespaceKind::Cgroup) {
        // Not at birth: its root would be the cgroup of the agent.
        // SAFETY: a new cgroup namespace shares no descriptors or memory that other code may rely on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .map_err(|error| failed("cannot make a cgroup namespace", error))?;
    }
    if spec.has_namespace(NamespaceKind::Network) {
        network::bring_loopback_up()
            .map_err(|error| failed("cannot bring the loopback interface up", error))?;
    }
    if let Some(name) = &spec.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| failed(format!("cannot set the host name {name}"), error))?;
    }
    if let Some(name) = &spec.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|error| failed(format!("cannot set the domain name {name}"), error))?;
    }
    Ok(())
}

/// A step that failed through no fault of the spec.
fn failed(what: impl Into<String>, error: impl std::fmt::Display) -> AgentError {
    failure(ErrorKind::Internal, what, error)
}

/// A step that failed.
fn failure(kind: ErrorKind, what: impl Into<String>, error: impl std::fmt::Display) -> AgentError {
    AgentError::new(kind, format!("{}: {error}", what.into()))
}
