// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal while it is a container's: raw, and as it was before on every way out.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::control::Size;
use crate::descriptors::close_all_but;

/// The size of a terminal, if `stream` is one and has any.
pub fn size(stream: impl AsFd) -> Option<Size> {
    let size = tcgetwinsize(stream).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// The size of the first of our standard streams that is a terminal.
pub fn our_size() -> Option<Size> {
    size(io::stdout())
        .or_else(|| size(io::stdin()))
        .or_else(|| size(io::stderr()))
}

/// A process that gives the terminal back if this one is killed. It is forked before there are threads; until
/// [`Keeper::make_raw`] it has nothing to do.
pub struct Keeper {
    process: Pid,
    lifeline: Option<OwnedFd>,
    before: Termios,
}

impl Keeper {
    /// A keeper of the terminal that is our standard input; nothing if that is none.
    ///
    /// To be called while the process has one thread: it forks.
    pub fn start() -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        // SAFETY: the process has one thread (the caller's promise), so the child may do whatever
        // the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error())
                .context("cannot fork the process that keeps the terminal"),
            0 => {
                keep(read, &before);
                // SAFETY: ends this process at once; what the parent registered for its own exit
                // must not run here.
                unsafe { libc::_exit(0) }
            }
            process => Ok(Some(Self {
                process: Pid::from_raw(process).context("fork gave no process id")?,
                lifeline: Some(write),
                before,
            })),
        }
    }

    /// Hands each key to the container as it is: from now on the terminal here does nothing by itself.
    pub fn make_raw(&self) -> Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings")
    }

    /// Has the terminal not show what is typed, until the keeper gives it back.
    pub fn hide_typing(&self) -> Result<()> {
        let mut hidden = self.before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)
            .context("cannot change the terminal's settings")
    }
}

impl Drop for Keeper {
    /// Has the keeper give the terminal back, once.
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // It is our child and does not wait for anything else.
        let _ = waitpid(Some(self.process), WaitOptions::empty());
    }
}

/// The keeper's life: block until the other end of the pipe closes, then give the terminal back. In a session of its
/// own it is no background process of the terminal's, which would be stopped for that.
fn keep(read: OwnedFd, before: &Termios) {
    let _ = rustix::process::setsid();
    close_all_but(&[io::stdin().as_fd(), read.as_fd()]);
    crate::descriptors::ignore_signals();
    let _ = File::from(read).read(&mut [0]);
    // Drained, so that what the container printed last is printed as it was meant.
    let _ = tcsetattr(terminal(), OptionalActions::Drain, before);
}

fn terminal() -> BorrowedFd<'static> {
    // SAFETY: standard input stays open for as long as this process lives.
    unsafe { BorrowedFd::borrow_raw(io::stdin().as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};

    use super::*;

    #[test]
    fn terminal_has_a_size_and_a_pipe_has_none() {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let (pipe, _write) = io::pipe().unwrap();
        let before = size(&terminal);
        let set = Winsize {
            ws_row: 50,
            ws_col: 132,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, set).unwrap();

        let expected = Size {
            columns: 132,
            rows: 50,
        };
        assert_eq!(size(&terminal), Some(expected));
        assert_eq!(before, None, "no size is no size");
        assert_eq!(size(&pipe), None);
    }
}
