// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle exec`.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::reach::{connect, containers, ended};
use crate::EXIT_CUT_OFF;
use crate::cli::{Directories, ExecArguments};
use crate::control::{Answer, Connection, Exec, Request, Size};
use crate::log;
use crate::output::{Output, Rest, Sink, Stream, start_input};
use crate::printable::printable;
use crate::run::{Forwarding, with_values};
use crate::terminal::{self, Keeper};

/// Runs a further command in a running container.
pub fn exec(directories: &Directories, arguments: &ExecArguments) -> Result<u8> {
    ensure!(
        !(arguments.interactive && arguments.tty) || io::stdin().is_terminal(),
        "standard input is not a terminal, so the command's cannot be one (leave out -t)"
    );
    let keeper = match arguments.tty && arguments.interactive {
        true => Keeper::start()?,
        false => None,
    };
    let (container, command) = arguments.container_and_command();
    let found = containers(directories).find(container)?;
    let mut connection = connect(&found)?;
    let request = Request::Exec(Exec {
        command: command.to_vec(),
        env: with_values(&arguments.env)?,
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        stdin: arguments.interactive,
        terminal: arguments.tty.then(|| {
            terminal::our_size().unwrap_or(Size {
                columns: 0,
                rows: 0,
            })
        }),
    });
    connection.send(&request, &[])?;
    let answer = connection
        .receive(None)
        .map_err(|error| ended(&found, error))?;
    let mut streams = match answer {
        Some(Answer::Streams) => connection.take_descriptors().into_iter(),
        answer => return failed(answer),
    };
    let mut next = || -> Result<UnixStream> {
        let stream: OwnedFd = streams
            .next()
            .context("a stream of the command is missing")?;
        Ok(stream.into())
    };
    let stdout = Output::start(Stream::Stdout, next()?, Sink::default().to(io::stdout())?)?;
    let stderr = match arguments.tty {
        true => None,
        false => {
            let sink = Sink::default().to(io::stderr())?;
            Some(Output::start(Stream::Stderr, next()?, sink)?)
        }
    };
    let signals = Forwarding::catch()?;
    if let Some(keeper) = &keeper {
        keeper.make_raw()?;
    }
    if arguments.interactive {
        start_input(next()?)?;
    }
    let status = attend(&mut connection, signals)?;
    if status.is_some() {
        Rest::new([stdout].into_iter().chain(stderr)).finish()?;
    }
    Ok(status.unwrap_or(EXIT_CUT_OFF))
}

/// Hands on signals until the command has ended; nothing if its container has ended under it.
fn attend(connection: &mut Connection, mut signals: Forwarding) -> Result<Option<u8>> {
    loop {
        // It may have come with the one before.
        match connection.next() {
            Ok(None) => {}
            Ok(Some(Answer::Exited { status })) => return Ok(Some(status)),
            Ok(answer) => return failed(answer).map(Some),
            Err(_) => return Ok(None),
        }
        let mut waiting = [
            PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
        let answered = !waiting[0].revents().is_empty();
        while let Some(signal) = signals.pending() {
            let request = match signal {
                libc::SIGWINCH => terminal::our_size().map(Request::Resize),
                signal => Some(Request::Signal { signal }),
            };
            // Where there is nobody to be told, the answer says so.
            let _ = request.map(|request| connection.send(&request, &[]));
        }
        if answered && connection.gather().is_err() {
            return Ok(None);
        }
    }
}

/// The command was not run.
fn failed(answer: Option<Answer>) -> Result<u8> {
    match answer {
        Some(Answer::Failed { message, status }) => match status {
            Some(status) => {
                log::tell(format_args!("coracle: {}", printable(&message)));
                Ok(status)
            }
            None => Err(anyhow!(printable(&message))),
        },
        _ => bail!("the process that runs the container gave an answer that makes no sense"),
    }
}
