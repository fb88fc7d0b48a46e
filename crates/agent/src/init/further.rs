// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A further process of a running container.
//!
//! The processes that run there may be hostile, and those that may trace others would find in a newcomer a process
//! with the guest's full powers. So nobody there sees one: the maker stays outside of the container's PID namespace while it enters all
//! others, gives up its powers and finds the command. What it then puts into the PID namespace is a copy of itself that has no more
//! than the container gave it, and a child of the agent, which waits at its start gate and becomes the command.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use coracle_agent_api::AgentError;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Resource;

use super::agent_files::AgentFiles;
use super::command::Command;
use super::in_root::Root;
use super::terminal::{self, Terminal};
use super::{failed, identity, wait_and_execute};
use crate::channel::{Channel, Ready};
use crate::clone::{Parent, clone};

use crate::spec::{Process, Rlimit};

/// Which namespaces are entered; those that the container shares with the guest are the same afterwards.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Makes the process in the container of `container`, its first process. In the maker, returns when that is done; in the process
/// itself, if it fails or the gate never opens.
pub(super) fn run(channel: &mut Channel, container: OwnedFd) -> Result<(), AgentError> {
    let process = channel
        .receive_process()
        .map_err(|error| failed("cannot receive the process from the agent", error))?;
    let process = Process::parse(&process)?;
    let (command, terminal) = prepare(&process, container)?;
    // SAFETY: this process has one thread, so its copy is whole.
    let made = unsafe { clone(0, Parent::Shared, None) };
    match made.map_err(|error| failed("cannot make a process in the container", error))? {
        Some((_, made)) => {
            let ready = Ready {
                process: Some(made.as_fd()),
                terminal: terminal.as_ref().map(AsFd::as_fd),
            };
            channel
                .send_ready(&ready)
                .map_err(|error| failed("cannot reach the agent", error))
        }
        None => {
            drop(terminal);
            identity::make_session()?;
            if process.terminal {
                terminal::control()?;
            }
            identity::set_limits(&process.rlimits)?;
            wait_and_execute(channel, &command)
        }
    }
}

/// Enters the container and gives up what the process is not to have.
fn prepare(
    process: &Process,
    container: OwnedFd,
) -> Result<(Command, Option<OwnedFd>), AgentError> {
    identity::detach()?;
    rustix::process::umask(Mode::empty());
    let agent = AgentFiles::open()?;
    agent.set_oom_score(process.oom_score_adj)?;
    agent.protect_null_streams()?;
    enter(&container).map_err(|error| failed("cannot enter the container", error))?;
    let terminal = make_terminal(process, &agent)?;
    // What is still open could be named as a working directory.
    drop((agent, container));

    identity::set_limits(&spacious(&process.rlimits))?;
    identity::become_user(process)?;
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    let command = Command::find(&process.args, &process.env)?;
    Ok((command, terminal))
}

/// Enters the container's namespaces; its root becomes this process', its PID namespace that of children.
fn enter(container: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let entered = unsafe { libc::setns(container.as_raw_fd(), NAMESPACES) };
    if entered < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn make_terminal(process: &Process, agent: &AgentFiles) -> Result<Option<OwnedFd>, AgentError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags, Mode::empty())
        .map_err(|error| failed("cannot open the container's root", error))?;
    Terminal::of(process, &Root::new(root), agent)?
        .map(Terminal::become_streams)
        .transpose()
}

/// The limits with room for the maker beside the process: it is a process of the same user. The process itself lowers
/// what is too high.
fn spacious(limits: &[Rlimit]) -> Vec<Rlimit> {
    let spacious = |limit: &Rlimit| match limit.resource {
        Resource::Nproc => {
            let present = rustix::process::getrlimit(Resource::Nproc).maximum;
            let most = limit.hard.max(present.unwrap_or(u64::MAX));
            Rlimit {
                soft: most,
                hard: most,
                ..*limit
            }
        }
        _ => *limit,
    };
    limits.iter().map(spacious).collect()
}
