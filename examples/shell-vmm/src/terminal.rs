// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A terminal that passes on what is typed, as it is typed.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// A terminal in raw mode, until this is dropped. Nothing at all is done to what is no terminal.
pub struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Option<Termios>,
}

impl<'a> Raw<'a> {
    pub fn enter(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let mut before = None;
        if isatty(terminal) {
            let attributes = tcgetattr(terminal)?;
            let mut raw = attributes.clone();
            raw.make_raw();
            tcsetattr(terminal, OptionalActions::Now, &raw)?;
            before = Some(attributes);
        }
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Whoever has taken the terminal away has no use for its settings.
            let _ = tcsetattr(self.terminal, OptionalActions::Now, before);
        }
    }
}
