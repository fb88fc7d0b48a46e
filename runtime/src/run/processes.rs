// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processes of one run: this executable again, in another role.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};

use crate::log;
use crate::roles::Role;
use crate::until::until;

/// First descriptor that is handed to a role; below are the standard streams.
pub const FIRST_FD: i32 = 3;

/// A role that runs in a process of its own. Dropping it ends the process and waits for that.
pub struct RoleProcess {
    role: Role,
    child: Child,
}

impl RoleProcess {
    /// Starts `role` with `words` for it, and `descriptors` as its 3, 4 and so on. It dies with this process. What it
    /// has to say goes to `messages`, or where this process's own goes.
    pub fn start(
        role: Role,
        words: &[String],
        descriptors: Vec<OwnedFd>,
        messages: Option<&File>,
    ) -> Result<Self> {
        let messages = match messages {
            Some(file) => file
                .try_clone()
                .context("cannot duplicate a file for messages")?
                .into(),
            None => Stdio::inherit(),
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("coracle")
            .arg(role.word())
            .args(words)
            .env_clear()
            .envs(std::env::var_os(log::VARIABLE).map(|level| (log::VARIABLE, level)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages);
        let mappings = (FIRST_FD..)
            .zip(descriptors)
            .map(|(child_fd, parent_fd)| FdMapping {
                parent_fd,
                child_fd,
            });
        command
            .fd_mappings(mappings.collect())
            .context("two descriptors of a role have one number")?;
        let parent = std::process::id();
        // SAFETY: the closure only makes system calls, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // A terminal's Ctrl-C, and its end, are for the container, not for what runs it.
                rustix::process::setsid()?;
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                // A parent that died before the line above sends no signal.
                match rustix::process::getppid() {
                    Some(current) if current.as_raw_nonzero().get().cast_unsigned() == parent => {
                        Ok(())
                    }
                    _ => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
                }
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start the {} process", role.name()))?;
        Ok(Self { role, child })
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process failed, if it ends within `patience` and in another way than well.
    pub fn failed(&mut self, patience: Duration) -> Option<String> {
        let look = || self.child.try_wait();
        let status = until(patience, look, |status| !matches!(status, Ok(None))).ok()??;
        let name = self.role.name();
        (!status.success()).then(|| format!("the {name} process failed ({status})"))
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        // Both fail only if the process is gone and waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
