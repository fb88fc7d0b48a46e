// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container's first process, from its birth in new namespaces until it executes the container's command.
//!
//! The agent has many threads, and a child of such a process may do next to nothing safely until it executes a program.
//! So it executes the agent once more, as `coracle-agent init`: a process with one thread that may allocate, lock and fail
//! as it likes. It takes the spec from the agent over a socket, makes the container around itself, waits at its start
//! gate and becomes the container's command.
//!
//! It meets the image's files with the guest's full powers, and the image may be hostile: every path of the spec
//! is resolved inside the root file system, mounts are made on descriptors instead of paths, and `/proc` is the
//! agent's, opened before the image could put something in its place.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::thread::UnshareFlags;

use crate::channel::Channel;
use crate::net;
use crate::spec::{NamespaceKind, Spec};
use agent_files::AgentFiles;
use command::Command;

mod agent_files;
pub mod command;
mod devices;
mod hidden;
mod identity;
pub mod in_root;
pub(crate) mod mounts;
mod rootfs;

/// The descriptor on which the agent is to be reached; standard streams are below it, nothing is above.
pub const CHANNEL_FD: i32 = 3;

/// Makes the container that the agent asks for and becomes its command. Returns if that fails.
#[must_use]
pub fn main() -> ExitCode {
    // SAFETY: the agent has put its channel there and nothing else in this process knows the descriptor.
    let channel = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    if rustix::io::fcntl_setfd(&channel, FdFlags::CLOEXEC).is_err() {
        eprintln!("coracle-agent: `init` is for the agent's own use");
        return ExitCode::FAILURE;
    }
    let mut channel = Channel::new(UnixStream::from(channel));
    let Err(error) = run(&mut channel) else {
        // The agent has gone or thought better of it.
        return ExitCode::FAILURE;
    };
    let status = error.kind.exit_status().unwrap_or(1);
    // If the agent has gone, nobody is left to be told.
    let _ = channel.send_failure(&error);
    ExitCode::from(status)
}

/// Goes all the way; `Ok` only if the gate never opens.
fn run(channel: &mut Channel) -> Result<(), AgentError> {
    let (bundle, spec) = channel
        .receive_container()
        .map_err(|error| failed("cannot receive the container from the agent", error))?;
    let spec = Spec::parse(&spec)?;
    let command = prepare(Path::new(&bundle), &spec)?;
    let open = channel
        .send_ready()
        .and_then(|()| channel.wait_at_gate())
        .map_err(|error| failed("cannot reach the agent", error))?;
    if open {
        return Err(command.execute());
    }
    Ok(())
}

/// Makes the container around this process.
fn prepare(bundle: &Path, spec: &Spec) -> Result<Command, AgentError> {
    identity::detach()?;
    rustix::process::umask(Mode::empty());
    let agent = AgentFiles::open()?;

    enter_namespaces(spec)?;
    let root = rootfs::attach(bundle, &spec.root)?;
    mounts::attach_all(&root, bundle, &spec.mounts)?;
    devices::make(&root, &spec.linux.devices)?;
    hidden::make_readonly(&root, &spec.linux.readonly_paths)?;
    hidden::mask(&root, &agent, &spec.linux.masked_paths)?;
    agent.set_kernel_parameters(&spec.linux.sysctl)?;
    agent.set_oom_score(spec.process.oom_score_adj)?;
    if spec.root.readonly {
        rootfs::make_readonly(&root)?;
    }
    agent.protect_null_streams()?;
    // Both are let go of here: what is still open could be named as a working directory.
    drop(agent);
    rootfs::enter(root)?;

    let process = &spec.process;
    identity::set_limits(&process.rlimits)?;
    identity::become_user(process)?;
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    Command::find(&process.args, &process.env)
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
        net::bring_loopback_up()
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
