// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run in the background: a process of its own, of which whoever started it hears until its container runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use crate::container::Id;
use crate::output::{MESSAGES, bounded};

/// The background's word that its container runs.
pub struct Ready {
    /// Where it is told.
    caller: File,
    /// What goes to standard error from then on.
    messages: File,
    /// What goes to that of the machine's processes, if not the same.
    bounded: Option<File>,
}

impl Ready {
    /// Has what there is to say later left in a container's directory.
    pub fn leaving_messages(self, container: &Path) -> Result<Self> {
        let path = container.join(MESSAGES);
        let messages = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let bounded = Some(bounded(&messages)?);
        Ok(Self {
            messages,
            bounded,
            ..self
        })
    }

    /// Where the machine's processes say what is for nobody's terminal.
    pub fn messages(&self) -> &File {
        self.bounded.as_ref().unwrap_or(&self.messages)
    }

    /// Says so, and leaves whoever started this process, with its terminal and its streams.
    pub fn tell(mut self, id: &Id) -> Result<()> {
        writeln!(self.caller, "{id}").context("cannot tell that the container runs")?;
        // A process that was forked leads no group, so it can lead a session.
        rustix::process::setsid().context("cannot leave the terminal")?;
        std::env::set_current_dir("/").context("cannot leave the directory")?;
        let nothing = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdin(&nothing)
            .and_then(|()| rustix::stdio::dup2_stdout(&nothing))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.messages))
            .context("cannot leave the standard streams")
    }
}

/// Does `work` in a process of its own. Here, the id of its container is printed once that runs; until then its
/// failure is this process's.
///
/// To be called while the process has one thread: it forks.
pub fn in_background(work: impl FnOnce(Ready) -> Result<u8>) -> Result<u8> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    // SAFETY: the process has one thread (the caller's promise), so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot fork a process for the background"),
        0 => {
            drop(read);
            let messages = io::stderr()
                .as_fd()
                .try_clone_to_owned()
                .context("cannot duplicate standard error")?
                .into();
            work(Ready {
                caller: File::from(write),
                messages,
                bounded: None,
            })
        }
        process => {
            drop(write);
            wait(
                read,
                Pid::from_raw(process).context("fork gave no process id")?,
            )
        }
    }
}

fn wait(read: OwnedFd, process: Pid) -> Result<u8> {
    let mut id = String::new();
    File::from(read)
        .read_to_string(&mut id)
        .context("cannot hear of the background")?;
    if !id.is_empty() {
        // A caller that hung up does not want to know.
        let _ = io::stdout().write_all(id.as_bytes());
        return Ok(0);
    }
    let ended = waitpid(Some(process), WaitOptions::empty())
        .context("cannot wait for the background")?
        .map(|(_, status)| status);
    if let Some(signal) = ended.and_then(WaitStatus::terminating_signal) {
        bail!("the process that was to run the container was killed (signal {signal})");
    }
    // It has said why itself.
    Ok(ended
        .and_then(|status| status.exit_status())
        .and_then(|status| u8::try_from(status).ok())
        .unwrap_or(crate::EXIT_FAILURE))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rstest::rstest;

    use super::*;

    /// What is heard of a background that does this.
    fn hear(script: &str) -> Result<u8> {
        // Closed in what other tests start meanwhile.
        let (read, write) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut child = command.stdout(write).spawn().unwrap();
        drop(command);
        let heard = wait(read.into(), Pid::from_child(&child));
        // Where it ended before its container ran, it was waited for.
        let _ = child.wait();
        heard
    }

    #[test]
    fn background_that_is_killed_is_told_of() {
        let error = hear("kill -KILL $$").unwrap_err();

        assert_eq!(
            error.to_string(),
            "the process that was to run the container was killed (signal 9)"
        );
    }

    #[rstest]
    #[case::failed("exit 127", 127)]
    #[case::running("echo 0123456789ab", 0)]
    fn status_of_the_background_is_ours(#[case] script: &str, #[case] status: u8) {
        assert_eq!(hear(script).unwrap(), status);
    }
}
