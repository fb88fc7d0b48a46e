// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who a container's process is and what it may do: session, limits, user, groups, capabilities.

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{FileType, Gid, Uid};
use rustix::io;
use rustix::process::{DumpableBehavior, Rlimit as KernelLimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::in_root::file_type;
use super::{failed, failure};
use crate::spec::{Capabilities, Process, Rlimit};

/// The value of a limit that stands for none.
const INFINITY: u64 = u64::MAX;

/// Leaves behind what the agent's threads have set for themselves.
pub(super) fn detach() -> Result<(), AgentError> {
    // While it is the agent's program, no other process may look into it or take hold of its executable.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| failed("cannot hide the process", error))?;
    // The agent saves memory for itself, not for containers.
    rustix::thread::disable_transparent_huge_pages(false)
        .map_err(|error| failed("cannot allow huge pages again", error))?;
    reset_signals();
    Ok(())
}

/// Makes this process the leader of a session of its own.
pub(super) fn make_session() -> Result<(), AgentError> {
    rustix::process::setsid()
        .map(drop)
        .map_err(|error| failed("cannot make a session", error))
}

/// Blocks no signal and ignores none, as a program expects to find them.
fn reset_signals() {
    /// `struct sigaction` of the kernel: all zeroes are the default.
    const DEFAULT: [u64; 4] = [0; 4];
    const SET_SIZE: usize = size_of::<u64>();
    // SAFETY: this process has one thread, the kernel reads a set and actions of the sizes that it knows and writes nothing,
    // and no handler that Rust's runtime may have set is needed up to the execution, which would reset it. The C library
    // is passed by because it keeps two signals to itself.
    unsafe {
        let none = 0_u64;
        let nowhere = std::ptr::null_mut::<u64>();
        let how = libc::SIG_SETMASK;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const none,
            nowhere,
            SET_SIZE,
        );
        for signal in 1..=64 {
            // SIGKILL and SIGSTOP are refused, and are as they should be.
            let default = DEFAULT.as_ptr();
            libc::syscall(libc::SYS_rt_sigaction, signal, default, nowhere, SET_SIZE);
        }
    }
}

pub(super) fn set_limits(limits: &[Rlimit]) -> Result<(), AgentError> {
    for limit in limits {
        let value = |value| (value != INFINITY).then_some(value);
        let kernel = KernelLimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        };
        rustix::process::setrlimit(limit.resource, kernel).map_err(|error| {
            let what = format!(
                "cannot limit {:?} to {} of at most {}",
                limit.resource, limit.soft, limit.hard
            );
            failure(ErrorKind::Limit, what, error)
        })?;
    }
    Ok(())
}

/// Enters the working directory and becomes the user, in an order in which each step is still allowed.
pub(super) fn become_user(process: &Process) -> Result<(), AgentError> {
    let user = &process.user;
    drop_bounding_set(process.capabilities.bounding)
        .map_err(|error| failed("cannot drop capabilities", error))?;
    rustix::thread::set_keep_capabilities(true)
        .map_err(|error| failed("cannot keep capabilities", error))?;

    // First as root; a directory that root may not enter, on a file system that trusts nobody, again as the user.
    let entered = match rustix::process::chdir(process.cwd.as_str()) {
        Err(io::Errno::ACCESS | io::Errno::PERM) => false,
        result => {
            result.map_err(|error| working_directory(&process.cwd, error))?;
            true
        }
    };
    own_standard_streams(Uid::from_raw(user.uid))
        .map_err(|error| failed("cannot give the standard streams to the user", error))?;
    let groups: Vec<_> = user
        .additional_gids
        .iter()
        .copied()
        .map(Gid::from_raw)
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .map_err(|error| {
            let what = format!("cannot become user {} of group {}", user.uid, user.gid);
            failed(what, error)
        })?;
    if !entered {
        rustix::process::chdir(process.cwd.as_str())
            .map_err(|error| working_directory(&process.cwd, error))?;
    }
    check_working_directory(&process.cwd)?;

    rustix::thread::set_keep_capabilities(false)
        .map_err(|error| failed("cannot stop keeping capabilities", error))?;
    set_capabilities(&process.capabilities)
        .map_err(|error| failed("cannot set the capabilities", error))?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| failed("cannot set noNewPrivileges", error))?;
    }
    Ok(())
}

fn working_directory(cwd: &str, error: io::Errno) -> AgentError {
    failure(
        ErrorKind::WorkingDirectory,
        format!("cannot enter the working directory {cwd}"),
        error,
    )
}

/// Refuses a working directory outside of the root: `/proc/self/fd/7` in a spec, should a descriptor ever leak.
fn check_working_directory(cwd: &str) -> Result<(), AgentError> {
    let path =
        rustix::process::getcwd(Vec::new()).map_err(|error| working_directory(cwd, error))?;
    if path.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(AgentError::new(
        ErrorKind::WorkingDirectory,
        format!("the working directory {cwd} is outside of the container"),
    ))
}

/// Lets the user open `/dev/stdout` and its like anew: opening a pipe or a terminal anew asks for permission on it. What is
/// neither is `/dev/null`, open to all and not to be given away.
fn own_standard_streams(uid: Uid) -> io::Result<()> {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        if file_type(stream)? == FileType::Fifo || rustix::termios::isatty(stream) {
            rustix::fs::fchown(stream, Some(uid), None)?;
        }
    }
    Ok(())
}

/// Drops every capability that the kernel knows and `keep` does not name.
fn drop_bounding_set(keep: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            // The kernel knows no capability of this number, nor of a higher one.
            Err(io::Errno::INVAL) => break,
            Ok(true) if !keep.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            result => drop(result?),
        }
    }
    Ok(())
}

fn set_capabilities(capabilities: &Capabilities) -> io::Result<()> {
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: capabilities.effective,
            permitted: capabilities.permitted,
            inheritable: capabilities.inheritable,
        },
    )?;
    rustix::thread::clear_ambient_capability_set()?;
    for capability in capabilities.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
