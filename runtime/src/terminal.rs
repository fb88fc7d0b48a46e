// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal while it is a container's: raw, and as it was before on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::control::Size;
use crate::lifeline::{Lifeline, wait_for_end};

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
    lifeline: Lifeline,
    before: Termios,
}

impl Keeper {
    /// A keeper of the terminal that is our standard input; nothing if that is none.
    ///
    /// To be called while the process has one thread: it forks.
    pub fn start() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let lifeline = Lifeline::fork(&[stdin.as_fd()], |user| keep(&user, &before))?;
        Ok(Some(Self { lifeline, before }))
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
        self.lifeline.hang_up();
        self.lifeline.wait();
    }
}

/// The keeper's life: block until its user hangs up, then give the terminal back. In a session of its own it is no
/// background process of the terminal's, which would be stopped for that.
fn keep(user: &UnixStream, before: &Termios) {
    wait_for_end(user);
    // Drained, so that what the container printed last is printed as it was meant.
    let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
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
