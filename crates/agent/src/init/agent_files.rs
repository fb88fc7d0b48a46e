// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent's own `/proc` and `/dev/null`, held open while the image's are mounted and made.
//!
//! Whoever writes to `/proc/sys` or binds `/dev/null` by a path inside a container may be writing to, or binding, what
//! the image put there. Both are therefore opened before the image is in sight, checked to be what they should be,
//! and used through their descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use coracle_agent_api::AgentError;
use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io;
use rustix::mount::MountAttrFlags;

use super::{failed, mounts};

/// What of the agent's file system outlives the change of root.
#[derive(Debug)]
pub(super) struct AgentFiles {
    proc: OwnedFd,
    null: OwnedFd,
}

impl AgentFiles {
    pub(super) fn open() -> Result<Self, AgentError> {
        let proc = open("/proc", OFlags::DIRECTORY)?;
        let file_system = rustix::fs::fstatfs(&proc)
            .map_err(|error| failed("cannot inspect the agent's /proc", error))?;
        if file_system.f_type != PROC_SUPER_MAGIC {
            return Err(failed("cannot use the agent's /proc", "it is not a procfs"));
        }
        let null = open("/dev/null", OFlags::NOFOLLOW)?;
        let checked = is_null(&null)
            .map_err(|error| failed("cannot inspect the agent's /dev/null", error))?;
        if !checked {
            return Err(failed(
                "cannot use the agent's /dev/null",
                "it is another file",
            ));
        }
        Ok(Self { proc, null })
    }

    /// `/dev/null` as a mount of its own, not attached yet. It can be written to as ever, but its mode and owner, which
    /// are those of every container's, stay as they are: the mount is read-only.
    pub(super) fn null(&self) -> io::Result<OwnedFd> {
        let null = mounts::clone(self.null.as_fd())?;
        let (set, clear) = (MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty());
        mounts::set_attributes(&null, set, clear, false)?;
        Ok(null)
    }

    /// Opens those standard streams that are `/dev/null` anew, where its mode and owner cannot be changed.
    pub(super) fn protect_null_streams(&self) -> Result<(), AgentError> {
        self.reopen_null_streams()
            .map_err(|error| failed("cannot open the standard streams anew", error))
    }

    /// Opens anew what `place`, opened as a place only, is.
    pub(super) fn reopen(&self, place: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("self/fd/{}", place.as_raw_fd());
        rustix::fs::openat(&self.proc, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn reopen_null_streams(&self) -> io::Result<()> {
        let (stdin, stdout, stderr) = (
            is_null(rustix::stdio::stdin())?,
            is_null(rustix::stdio::stdout())?,
            is_null(rustix::stdio::stderr())?,
        );
        if !(stdin || stdout || stderr) {
            return Ok(());
        }
        let null = match self.reopen(&self.null()?, OFlags::RDWR) {
            // The container's own rules deny it; what it has inherited stays usable.
            Err(io::Errno::PERM) => return Ok(()),
            result => result?,
        };
        if stdin {
            rustix::stdio::dup2_stdin(&null)?;
        }
        if stdout {
            rustix::stdio::dup2_stdout(&null)?;
        }
        if stderr {
            rustix::stdio::dup2_stderr(&null)?;
        }
        Ok(())
    }

    /// Sets kernel parameters as this process' namespaces see them.
    pub(super) fn set_kernel_parameters(
        &self,
        parameters: &BTreeMap<String, String>,
    ) -> Result<(), AgentError> {
        for (name, value) in parameters {
            self.write(&parameter_path(name), value)
                .map_err(|error| failed(format!("cannot set {name} to `{value}`"), error))?;
        }
        Ok(())
    }

    pub(super) fn set_oom_score(&self, score: Option<i32>) -> Result<(), AgentError> {
        let Some(score) = score else { return Ok(()) };
        self.write("self/oom_score_adj", &score.to_string())
            .map_err(|error| failed(format!("cannot set oomScoreAdj to {score}"), error))
    }

    /// Writes `value` to a file that exists below `/proc` and nowhere else.
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let file = rustix::fs::openat2(
            &self.proc,
            path,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS,
        )?;
        let written = io::write(&file, value.as_bytes())?;
        if written == value.len() {
            Ok(())
        } else {
            Err(io::Errno::INVAL)
        }
    }
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd, AgentError> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC | flags,
        Mode::empty(),
    )
    .map_err(|error| failed(format!("cannot open the agent's {path}"), error))
}

fn is_null(file: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(character && stat.st_rdev == rustix::fs::makedev(1, 3))
}

/// The path of a parameter below `/proc`. A name that holds a slash uses slashes throughout, so that a dot can be part of
/// an interface's name: `net/ipv4/conf/eth0.1/forwarding`.
fn parameter_path(name: &str) -> String {
    if name.contains('/') {
        format!("sys/{name}")
    } else {
        format!("sys/{}", name.replace('.', "/"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward")]
    #[case(
        "net/ipv4/conf/eth0.1/forwarding",
        "sys/net/ipv4/conf/eth0.1/forwarding"
    )]
    fn parameter_becomes_a_path(#[case] name: &str, #[case] expected: &str) {
        assert_eq!(parameter_path(name), expected);
    }

    #[test]
    fn parameter_outside_of_proc_is_refused() {
        let files = AgentFiles::open().unwrap();

        let result = files.write(&parameter_path("../../dev/null"), "1");

        assert_eq!(result, Err(io::Errno::XDEV));
    }
}
