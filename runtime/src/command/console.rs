// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle console`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::reach::{connect, containers, ended};
use crate::cli::{ConsoleArguments, Directories};
use crate::control::{Answer, Request};
use crate::log;
use crate::printable::printable;
use crate::terminal::Keeper;

/// The key that leaves: Ctrl-].
const LEAVE: u8 = 0x1d;
/// How often it is looked whether the guest has said more: its log is a file, which nothing can be waited for on.
const LOOK: Duration = Duration::from_millis(50);

/// Shows what a guest says, and hands on what is typed, until the guest has ended or the user leaves.
pub fn console(directories: &Directories, arguments: &ConsoleArguments) -> Result<u8> {
    let keeper = Keeper::start()?;
    let found = containers(directories).find(&arguments.container)?;
    let mut connection = connect(&found)?;
    connection.send(&Request::Console, &[])?;
    match connection
        .receive(None)
        .map_err(|error| ended(&found, error))?
    {
        Some(Answer::Streams) => {}
        Some(Answer::Failed { message, .. }) => bail!(printable(&message)),
        _ => bail!("the process that runs the container has no console for us"),
    }
    let [log, keyboard] = <[OwnedFd; 2]>::try_from(connection.take_descriptors())
        .ok()
        .context("a part of the console is missing")?;
    let mut shown = Shown {
        file: log.into(),
        place: 0,
    };
    let mut typing = Typing {
        keyboard: keyboard.into(),
        pending: Vec::new(),
        is_terminal: io::stdin().is_terminal(),
        is_over: false,
    };
    if let Some(keeper) = &keeper {
        log::tell("Ctrl-] leaves the console.");
        keeper.make_raw()?;
    }
    loop {
        let has_more = shown.show_piece(&mut io::stdout().lock())?;
        let stdin = io::stdin();
        let mut waiting = [
            PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
            match typing.pending.is_empty() {
                true => PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
                false => PollFd::new(&typing.keyboard, PollFlags::OUT),
            },
        ];
        let waiting = &mut waiting[..if typing.is_over { 1 } else { 2 }];
        let patience = if has_more { Duration::ZERO } else { LOOK };
        match poll(waiting, Timespec::try_from(patience).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the console"),
        }
        if !waiting[0].revents().is_empty() {
            shown.show_rest()?;
            return Ok(0);
        }
        let is_ready = waiting.get(1).is_some_and(|it| !it.revents().is_empty());
        if is_ready && !typing.go_on()? {
            return Ok(0);
        }
    }
}

/// What is typed, on its way to the guest, which may not read it.
struct Typing {
    /// Other processes have it, too: it is not for this one to make it non-blocking.
    keyboard: UnixStream,
    /// What the guest has not taken yet of what does not come from a terminal.
    pending: Vec<u8>,
    is_terminal: bool,
    is_over: bool,
}

impl Typing {
    /// Goes on where that can be done without waiting; says whether the user stays. What comes from a file waits for the
    /// guest; at a terminal it is always waited for the key that leaves.
    fn go_on(&mut self) -> Result<bool> {
        if !self.pending.is_empty() {
            return self.hand_on().map(|()| true);
        }
        let mut keys = [0; 1024];
        // Not through a buffer: what is in that would wait for the next key.
        let length = rustix::io::read(rustix::stdio::stdin(), &mut keys)
            .context("cannot read standard input")?;
        if length == 0 {
            // Who is at no terminal goes on watching.
            self.is_over = true;
            return Ok(!self.is_terminal);
        }
        let typed = keys[..length].iter().position(|key| *key == LEAVE);
        self.pending
            .extend_from_slice(&keys[..typed.unwrap_or(length)]);
        self.hand_on()?;
        Ok(typed.is_none())
    }

    /// Hands on as much as the guest takes.
    fn hand_on(&mut self) -> Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.keyboard, &self.pending, flags) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The machine has ended, of which the connection tells.
            Err(Errno::PIPE | Errno::CONNRESET) => {
                self.is_over = true;
                self.pending.clear();
            }
            Err(error) => return Err(error).context("cannot hand on what was typed"),
        }
        if self.is_terminal {
            // As with a serial line: what nobody reads is lost.
            self.pending.clear();
        }
        Ok(())
    }
}

/// What a guest has said, as far as it was shown.
struct Shown {
    file: File,
    place: u64,
}

impl Shown {
    /// Shows a piece of what is new; says whether there may be more.
    fn show_piece(&mut self, to: &mut impl Write) -> Result<bool> {
        if self.length()? < self.place {
            // The oldest part was dropped, and with it where we were.
            self.place = 0;
        }
        let mut piece = [0; 8192];
        let length = self
            .file
            .read_at(&mut piece, self.place)
            .context("cannot read the console")?;
        self.place += length as u64;
        to.write_all(&piece[..length])
            .and_then(|()| to.flush())
            .context("cannot write to standard output")?;
        Ok(length > 0)
    }

    /// Shows all that is there by now.
    fn show_rest(&mut self) -> Result<()> {
        let length = self.length()?;
        while self.show_piece(&mut io::stdout().lock())? && self.place < length {}
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata.context("cannot read the console")?.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn typing(is_terminal: bool) -> (Typing, UnixStream) {
        let (keyboard, guest) = UnixStream::pair().unwrap();
        let typing = Typing {
            keyboard,
            pending: Vec::new(),
            is_terminal,
            is_over: false,
        };
        (typing, guest)
    }

    #[test]
    fn guest_that_reads_nothing_does_not_hold_up_who_types() {
        let (mut typing, _guest) = typing(true);

        for _ in 0..1000 {
            typing.pending.extend_from_slice(&[b'x'; 1024]);
            typing.hand_on().unwrap();
            assert!(typing.pending.is_empty());
        }
    }

    #[test]
    fn file_waits_for_the_guest_and_arrives_whole() {
        let (mut typing, mut guest) = typing(false);
        let mut sent = 0;
        while typing.pending.is_empty() {
            typing.pending.extend_from_slice(&[b'x'; 1024]);
            sent += 1024;
            typing.hand_on().unwrap();
        }

        let mut taken = 0;
        while taken < sent {
            taken += guest.read(&mut [0; 64 << 10]).unwrap();
            typing.hand_on().unwrap();
        }

        assert!(typing.pending.is_empty());
        assert_eq!(taken, sent);
    }

    #[test]
    fn flood_is_shown_piece_by_piece() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 20_000]).unwrap();
        let mut shown = Shown { file, place: 0 };

        let mut pieces = [const { Vec::new() }; 4];
        let more = pieces
            .each_mut()
            .map(|piece| shown.show_piece(piece).unwrap());

        assert_eq!(more, [true, true, true, false]);
        assert_eq!(pieces.concat().len(), 20_000);
    }
}
