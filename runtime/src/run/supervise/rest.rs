// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! After a container's end: what it has put out goes to whoever reads it, who may take their time.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::SESSIONS;
use crate::control::{Answer, Connection, Listener, ReceiveError, Request};
use crate::output::Rest;
use crate::run::signals::{ENDING, Forwarding};

/// Waits until the outputs of a container, which has ended, are handed on, or nobody wants them any more: a signal says so,
/// and whoever has the machine ended.
pub fn finish(mut rest: Rest, listener: &Listener, signals: &mut Forwarding) -> Result<()> {
    let mut connections = Vec::new();
    while !rest.is_over() {
        while let Some(signal) = signals.pending() {
            if ENDING.contains(&signal) {
                return Ok(());
            }
        }
        let mut is_unwanted = false;
        connections.retain_mut(|connection| match answer(connection) {
            Asked::Nothing => true,
            Asked::Other => false,
            Asked::End => {
                is_unwanted = true;
                false
            }
        });
        if is_unwanted {
            return Ok(());
        }
        let mut waiting: Vec<_> = [signals.as_fd(), listener.as_fd()]
            .into_iter()
            .chain(rest.descriptors())
            .chain(connections.iter().map(AsFd::as_fd))
            .map(|each| PollFd::from_borrowed_fd(each, PollFlags::IN))
            .collect();
        match poll(&mut waiting, Timespec::try_from(Rest::LOOK).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for output"),
        }
        if let Some(connection) = listener.accept() {
            // Who came first has had the time to ask.
            if connections.len() >= SESSIONS {
                connections.remove(0);
            }
            connections.push(connection);
        }
    }
    rest.into_outcome()
}

/// What was asked for over a connection.
enum Asked {
    Nothing,
    End,
    /// What cannot be had any more.
    Other,
}

fn answer(connection: &mut Connection) -> Asked {
    // What was asked before it hung up counts.
    let gathered = connection.gather();
    let (asked, answer) = match (connection.next(), gathered) {
        (Ok(Some(Request::End)), _) => (Asked::End, Answer::Done),
        (Ok(None), Ok(())) => return Asked::Nothing,
        (Ok(Some(_)) | Err(ReceiveError::Nonsense(_)), _) => {
            let message = "the container has ended".to_owned();
            (
                Asked::Other,
                Answer::Failed {
                    message,
                    status: None,
                },
            )
        }
        _ => return Asked::Other,
    };
    // Whoever hung up wants no answer.
    let _ = connection.send(&answer, &[]);
    asked
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use super::*;
    use crate::output::{Output, Sink, Stream};

    /// More than a pipe holds.
    const MUCH: usize = 100_000;

    /// A container that has ended, with output on its way to a reader.
    struct Ended {
        state: tempfile::TempDir,
        reader: io::PipeReader,
        handing_on: JoinHandle<Result<()>>,
    }

    fn ended() -> Ended {
        let state = tempfile::tempdir().unwrap();
        let listener = Listener::bind(state.path()).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, write) = io::pipe().unwrap();
        let sink = Sink::default().to(&write).unwrap();
        let output = Output::start(Stream::Stdout, host, sink).unwrap();
        guest.write_all(&[b'x'; MUCH]).unwrap();
        let handing_on = thread::spawn(move || {
            let mut signals = Forwarding::catch().unwrap();
            finish(Rest::new([output]), &listener, &mut signals)
        });
        Ended {
            state,
            reader,
            handing_on,
        }
    }

    fn ask(state: &Path, request: &Request) -> Answer {
        let mut connection = Connection::open(state).unwrap();
        connection.send(request, &[]).unwrap();
        let answer = connection.receive(Some(Duration::from_secs(10)));
        answer.unwrap().unwrap()
    }

    #[test]
    fn others_are_answered_while_a_reader_stands_still_and_can_end_it() {
        let ended = ended();
        let silent = Connection::open(ended.state.path()).unwrap();

        let [usage, end] =
            [Request::Usage, Request::End].map(|request| ask(ended.state.path(), &request));

        let message = "the container has ended".to_owned();
        assert_eq!(
            usage,
            Answer::Failed {
                message,
                status: None
            }
        );
        assert_eq!(end, Answer::Done);
        ended.handing_on.join().unwrap().unwrap();
        drop(silent);
    }

    #[test]
    fn all_comes_through_however_slow_the_reader() {
        let mut ended = ended();
        thread::sleep(Duration::from_millis(300));

        let mut found = Vec::new();
        ended.reader.read_to_end(&mut found).unwrap();

        ended.handing_on.join().unwrap().unwrap();
        assert_eq!(found.len(), MUCH);
    }
}
