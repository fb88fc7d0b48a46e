// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle console`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

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
    let mut log = Log {
        file: log.into(),
        place: 0,
    };
    let mut keyboard = Some(UnixStream::from(keyboard));
    if let Some(keeper) = &keeper {
        log::tell("Ctrl-] leaves the console.");
        keeper.make_raw()?;
    }
    loop {
        log.show()?;
        let has_input = keyboard.is_some();
        let stdin = io::stdin();
        let mut waiting = [
            PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        let waiting = &mut waiting[..1 + usize::from(has_input)];
        match poll(waiting, Timespec::try_from(LOOK).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the console"),
        }
        if !waiting[0].revents().is_empty() {
            log.show()?;
            return Ok(0);
        }
        if has_input && !waiting[1].revents().is_empty() && !hand_on(&mut keyboard)? {
            return Ok(0);
        }
    }
}

/// Hands on what was typed; says whether the user stays.
fn hand_on(keyboard: &mut Option<UnixStream>) -> Result<bool> {
    let mut keys = [0; 1024];
    let length = io::stdin()
        .lock()
        .read(&mut keys)
        .context("cannot read standard input")?;
    if length == 0 {
        // Who is at no terminal goes on watching.
        *keyboard = None;
        return Ok(!io::stdin().is_terminal());
    }
    let keys = &keys[..length];
    let typed = keys.iter().position(|key| *key == LEAVE);
    if let Some(keyboard) = keyboard {
        keyboard
            .write_all(&keys[..typed.unwrap_or(length)])
            .context("cannot hand on what was typed")?;
    }
    Ok(typed.is_none())
}

/// What a guest has said, as far as it was shown.
struct Log {
    file: File,
    place: u64,
}

impl Log {
    fn show(&mut self) -> Result<()> {
        let length = self
            .file
            .metadata()
            .context("cannot read the console")?
            .len();
        if length < self.place {
            // The oldest part was dropped, and with it where we were.
            self.place = 0;
        }
        let mut piece = [0; 8192];
        let mut stdout = io::stdout().lock();
        loop {
            let length = self
                .file
                .read_at(&mut piece, self.place)
                .context("cannot read the console")?;
            if length == 0 {
                return stdout.flush().context("cannot write to standard output");
            }
            stdout
                .write_all(&piece[..length])
                .context("cannot write to standard output")?;
            self.place += length as u64;
        }
    }
}
