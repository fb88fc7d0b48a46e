// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The container's standard streams: each is a connection of its own from the guest, and a thread
//! here that moves bytes between it and ours.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// The most that is handed on at once, in bytes: a pipe's usual size.
const PIECE: usize = 64 << 10;

/// One of our output streams on which the container's is copied.
pub struct Output {
    name: &'static str,
    thread: JoinHandle<io::Result<()>>,
}

impl Output {
    /// Copies all that comes from `guest` to `ours` until the guest closes its end.
    pub fn start(name: &'static str, mut guest: UnixStream, ours: impl AsFd) -> Result<Self> {
        let mut ours = own(ours)?;
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let copied = copy(&mut guest, &mut ours);
                if copied.is_err() {
                    // Nobody reads our end any more: the container shall see the same on its own.
                    let _ = guest.shutdown(Shutdown::Both);
                }
                copied
            })
            .with_context(|| format!("cannot start the thread for {name}"))?;
        Ok(Self { name, thread })
    }

    /// Waits until everything has been handed on.
    pub fn finish(self) -> Result<()> {
        match self.thread.join() {
            // A reader that went away (`coracle run … | head`) is the caller's own doing.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(copied) => copied
                .map(drop)
                .with_context(|| format!("cannot hand on the container's {}", self.name)),
            Err(_) => anyhow::bail!("the thread for {} panicked", self.name),
        }
    }
}

/// Copies our standard input to the container's, and its end too. Nobody waits for this: a
/// container may end without having read all.
pub fn start_input(guest: UnixStream) -> Result<()> {
    let mut ours = own(io::stdin())?;
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            // A failure means that the container reads no more.
            let _ = copy(&mut ours, &mut &guest);
            let _ = guest.shutdown(Shutdown::Write);
        })
        .context("cannot start the thread for stdin")?;
    Ok(())
}

/// Hands on each piece as it comes.
///
/// Not `io::copy`: that splices, and a splice from a socket holds the pipe it fills for as long as
/// it waits for more, so that nobody can read what is in it.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An unbuffered handle on one of our streams.
fn own(stream: impl AsFd) -> Result<File> {
    Ok(File::from(
        stream
            .as_fd()
            .try_clone_to_owned()
            .context("cannot duplicate a standard stream")?,
    ))
}
